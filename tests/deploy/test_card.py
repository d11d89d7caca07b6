from pathlib import Path

from raydelta.config import Config
from raydelta.deploy.card import find_rows
from raydelta.results.table import write_table
from raydelta.training.job import Job
from tests.sweep import make_rows


def test_a_row_is_found_by_its_training_an_ensemble_too(tmp_path: Path) -> None:
    rows = [
        row.model_copy(update={"stage": f"{row.method}-1"})
        for row in make_rows(budgets=(7,), seeds=(0,), device_hours=0.2)
    ]
    ensemble = rows[0].model_copy(update={"method": "ensemble", "stage": "ensemble-1"})
    again = ensemble.model_copy(update={"method": "ensemble, again"})
    for name, table in (("tune-a", rows), ("tune-b", [*rows, ensemble, again])):
        write_table(tmp_path / name, table)
    job = Job(kind="ensemble", config=Config(), directory=tmp_path / "ensemble-1")
    assert find_rows(job) == [ensemble], "all have the same device-hours"
    assert find_rows(job.model_copy(update={"directory": tmp_path / "ensemble-2"})) == []
