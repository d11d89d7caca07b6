"""One training by itself: what it builds on is trained first."""

from pathlib import Path

import pytest

from raydelta.config import Config, load_config, override
from raydelta.errors import UserError
from raydelta.training.run import train_here
from raydelta.training.stage import read_stage
from raydelta.tuning import single
from tests.sets import REAL_NAMES, STEPS, write_set
from tests.tiny import TINY


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of data sets on disk; what is trained is trained in this process."""
    monkeypatch.setattr(single, "ensure_ray", lambda: None)
    monkeypatch.setattr(single, "train_on_ray", train_here)
    sets = {
        "data.synthetic": write_set(tmp_path / "simulated", "synthetic", [(f"s{n}", "all") for n in range(22)]),
        "data.real": write_set(tmp_path / "street", "street", REAL_NAMES),
    }
    return load_config(overrides=TINY | STEPS | sets)


def test_a_taught_translator_is_trained_after_its_teacher(config: Config, tmp_path: Path) -> None:
    config = override(config, {"guidance.teacher": "taught student"})
    job = single.train_translator(config, tmp_path / "runs")
    assert job.kind == "translator" and job.done
    assert job.student is not None and job.student.kind == "taught student"
    order = [read_stage(parent.directory) is not None for parent in job.parents]
    assert [parent.kind for parent in job.parents] == ["mean teacher", "translator", "taught student"] and all(order)
    assert single.train_translator(config, tmp_path / "runs").directory == job.directory


def test_a_row_of_the_table_is_trained_by_itself(config: Config, tmp_path: Path) -> None:
    job = single.train_row("joint-training", config, tmp_path / "runs")
    assert (job.kind, job.done) == ("joint training", True)
    two_views = single.train_row("mean teacher, two views", config, tmp_path / "runs")
    assert two_views.config.self_training.views == 2
    with pytest.raises(UserError, match="ensemble is made of guided and student, and trains nothing itself"):
        single.train_row("ensemble", config, tmp_path / "runs")
    with pytest.raises(UserError, match="no method 'joint': "):
        single.train_row("joint", config, tmp_path / "runs")
