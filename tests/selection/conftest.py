from pathlib import Path

import pytest

from raydelta.config import load_config, override
from raydelta.training.job import Job, make_job
from raydelta.training.run import train_here
from tests.sets import REAL_NAMES, STEPS, SYNTHETIC, bought_labels, write_set
from tests.tiny import TINY, UNET


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("selection")


@pytest.fixture(scope="module")
def translator(folder: Path) -> Job:
    """Trained where labels that it has not bought cannot be decoded, and where there is no test shard."""
    plain = load_config(overrides=TINY | UNET | STEPS)
    synthetic = write_set(folder / "simulated", "synthetic", [(f"s{index}", "all") for index in range(SYNTHETIC)])
    real = write_set(folder / "street", "street", REAL_NAMES, bought_labels(plain))
    config = override(plain, {"data.synthetic": synthetic, "data.real": real})
    expert = make_job("expert", config, folder / "runs")
    train_here(expert)
    job = make_job("translator", config, folder / "runs", expert.directory)
    train_here(job)
    train_here(make_job("joint training", config, folder / "runs", expert.directory))
    return job
