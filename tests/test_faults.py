"""Faults that a test can afford; benchmarks/faults.py brings about all of them, on a cluster too."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import format_markdown
from raydelta.config import load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.training.job import make_job
from raydelta.training.run import train_here, working_directory
from raydelta.tuning.tune import tune
from tests.test_search_space import write_space
from tests.tiny import TINY, TINY_ARGUMENTS


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("faults") / "faults.json"
    return bring_about(path, "disk-full", "damaged-checkpoint")


def bring_about(path: Path, *names: str, kills: int = 0) -> dict[str, Any]:
    """The results of ``benchmarks.faults`` by name."""
    command = [sys.executable, "-m", "benchmarks.faults", "--json", str(path), "--kills", str(kills), "--only", *names]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=550)
    return {row["name"]: row for row in json.loads(path.read_text())["faults"]}


@pytest.mark.parametrize(("count", "ended"), [(20, 1), pytest.param(200, 3, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_everything_whole(count: int, ended: int, tmp_path: Path) -> None:
    """That every checkpoint and stage is whole, and the result that of a run without kills, is asserted on the way."""
    kills = bring_about(tmp_path / "faults.json", "kills", kills=count)["kills"]
    assert kills["fault"].startswith(f"{count} ×")
    assert 0 < kills["lost"] <= kills["interval"]
    assert int(kills["note"].split()[0]) >= ended, "trainings that ended in spite of it"


def test_a_full_disk_costs_at_most_one_interval(measured: dict[str, Any]) -> None:
    assert 0 < measured["disk-full"]["lost"] <= measured["disk-full"]["interval"]


def test_a_damaged_checkpoint_costs_one_interval_more(measured: dict[str, Any]) -> None:
    damaged = measured["damaged-checkpoint"]
    assert damaged["interval"] < damaged["lost"] <= 2 * damaged["interval"]


def test_the_same_training_twice_at_once(ray_session: None, tmp_path: Path) -> None:
    """As two trials of a sweep with the same settings: the one that comes second waits, and trains nothing."""
    config = prepare_data(load_config(overrides=TINY), tmp_path)
    job = make_job("expert", override(config, {"compute.report_every": 1}), tmp_path)
    steps: list[int] = []
    seconds: list[dict[str, Any]] = []
    twin = threading.Thread(target=train_here, args=(job, seconds.append))

    def on_report(metrics: dict[str, Any]) -> None:
        steps.append(metrics["step"])
        if metrics["step"] == 3:
            twin.start()

    train_here(job, on_report)
    twin.join(60)
    assert not twin.is_alive()
    assert (steps, seconds) == ([1, 2, 3, 4, 5, 6], [])
    assert job.done
    assert not working_directory(job).exists()


def test_a_trial_that_runs_out_of_memory_is_named_and_the_sweep_goes_on(ray_session: None, tmp_path: Path) -> None:
    space = write_space(tmp_path, search={"generator.width": {"grid": [4, 200_000]}}, table={"methods": ["guided"]})
    arguments = [argument for argument in TINY_ARGUMENTS if "generator.width" not in argument]
    outcome = tune(space, arguments, runs=tmp_path / "runs")
    assert outcome.best == {"generator.width": 4}
    (failed,) = outcome.failed
    assert "200000" in failed
    assert "out of memory: can't allocate memory: you tried to allocate" in failed
    assert "run fewer trials at once" in failed


def test_the_document_holds_what_was_measured() -> None:
    document = Path("docs/reliability.md").read_text()
    name = document.split("<!-- faults: ")[1].split(" -->")[0]
    assert format_markdown(Path(name)) in document
