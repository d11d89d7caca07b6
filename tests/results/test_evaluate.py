from typing import Any

import pytest

from raydelta.compute.device import find_place
from raydelta.config import override
from raydelta.results.evaluate import evaluate_job, validation_miou
from raydelta.training.job import Job, make_job
from raydelta.training.stage import read_stage
from raydelta.training.trained import load_model


def test_a_row_has_the_miou_of_its_validation_labels(trained: dict[str, Any]) -> None:
    for kind in ("translator", "joint training", "mean teacher"):
        job = trained[kind]
        stage = read_stage(job.directory)
        assert stage is not None
        (row,) = (row for row in evaluate_job(kind, job) if row.domain == "real" and row.split == "test")
        assert row.validation == pytest.approx(stage["metrics"]["miou"]), "as its training saw it at its end"
        assert row.stage == job.directory.name


def test_the_expert_and_an_ensemble_have_one_too(trained: dict[str, Any]) -> None:
    expert = trained["expert"]
    ensemble = make_job("ensemble, untranslated", expert.config, expert.directory.parent, expert.directory)
    found = [validate(job) for job in (expert, ensemble)]
    assert all(value is not None and 0 <= value <= 100 for value in found)
    for labels in (0, 1000):  # none, and more than there are
        config = override(expert.config, {"labels.validation": labels})
        assert validate(expert.model_copy(update={"config": config})) is None


def validate(job: Job) -> float | None:
    place = find_place(job.config)
    return validation_miou(job, load_model(job, place), place)
