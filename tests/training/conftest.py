"""Small data sets and an expert, for tests of what trainings are made of and of what they become."""

from pathlib import Path
from typing import Any

import pytest

from raydelta.config import Config, load_config, override
from raydelta.training.job import Job, make_job
from raydelta.training.run import train_here
from tests.sets import REAL_NAMES, STEPS, SYNTHETIC, bought_labels, no_label, write_set
from tests.tiny import TINY

Trained = tuple[Job, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    """Both sets lack their test shard, and labels that the budget does not buy cannot be decoded."""
    plain = load_config(overrides=TINY | STEPS)
    synthetic = write_set(folder / "simulated", "synthetic", [(f"s{index}", "all") for index in range(SYNTHETIC)])
    return override(
        plain,
        {
            "data.synthetic": synthetic,
            "data.real": write_set(folder / "street", "street", REAL_NAMES, bought_labels(plain)),
        },
    )


@pytest.fixture(scope="module")
def all_labelled(folder: Path, config: Config) -> Config:
    return override(config, {"data.real": write_set(folder / "street all", "street", REAL_NAMES)})


@pytest.fixture(scope="module")
def unlabelled(folder: Path, config: Config) -> Config:
    return override(config, {"data.real": write_set(folder / "street none", "street", REAL_NAMES, no_label)})


def train_job(job: Job) -> Trained:
    reports: list[dict[str, Any]] = []
    train_here(job, reports.append)
    return job, reports


@pytest.fixture(scope="module")
def expert(config: Config, folder: Path) -> Trained:
    return train_job(make_job("expert", config, folder / "runs"))
