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
from benchmarks.faults_here import SMALL
from raydelta.config import load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.training.job import make_job
from raydelta.training.run import train_here, working_directory
from raydelta.tuning.tune import tune
from tests.sets import REAL_NAMES, write_set
from tests.test_search_space import write_space
from tests.tiny import TINY, TINY_ARGUMENTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all faults, and the config that names it."""
    folder = tmp_path_factory.mktemp("faults")
    sets = {
        "data.synthetic": write_set(folder / "simulated", "synthetic", [(f"s{index}", "all") for index in range(22)]),
        "data.real": write_set(folder / "street", "street", REAL_NAMES),
    }
    (folder / "config.json").write_text(override(load_config(overrides=SMALL), sets).model_dump_json())
    return folder


def bring_about(folder: Path, name: str, kills: int = 0) -> dict[str, Any]:
    """What a fault of ``benchmarks.faults`` costs, in a process of its own."""
    path = folder / f"{name} {kills}"
    path.mkdir()
    command = [sys.executable, "-m", "benchmarks.faults", "--child", str(path), "--kills", str(kills), "--only", name]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=550)
    return json.loads((path / "result.json").read_text())


@pytest.mark.parametrize(("count", "ended"), [(6, 1), pytest.param(200, 3, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_everything_whole(count: int, ended: int, folder: Path) -> None:
    """That every checkpoint and stage is whole, and the result that of a run without kills, is asserted on the way."""
    kills = bring_about(folder, "kills", count)
    assert kills["fault"].startswith(f"{count} ×")
    assert 0 < kills["lost"] <= kills["interval"]
    assert int(kills["note"].split()[0]) >= ended, "trainings that ended in spite of it"


def test_a_full_disk_costs_at_most_one_interval(folder: Path) -> None:
    full = bring_about(folder, "disk-full")
    assert 0 < full["lost"] <= full["interval"]


def test_a_damaged_checkpoint_costs_one_interval_more(folder: Path) -> None:
    damaged = bring_about(folder, "damaged-checkpoint")
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


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_is_named_and_the_sweep_goes_on(ray_session: None, tmp_path: Path) -> None:
    """Sibling: tests/tuning/test_tune.py, a failed trial."""
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
