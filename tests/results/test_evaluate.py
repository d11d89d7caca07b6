from typing import Any

import pytest

from raydelta.config import override
from raydelta.results.evaluate import evaluate_job
from raydelta.training.job import make_job, read_stage


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
    found = {job.kind: evaluate_job(job.kind, job)[0].validation for job in (expert, ensemble)}
    assert all(value is not None and 0 <= value <= 100 for value in found.values())
    none = expert.model_copy(update={"config": override(expert.config, {"labels.validation": 0})})
    rows = evaluate_job("synthetic only", none)
    assert {row.validation for row in rows} == {None}
    assert [(row.domain, row.split) for row in rows][-1] == ("real", "test")
