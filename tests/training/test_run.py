import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from raydelta.config import Config, load_config, override
from raydelta.training.checkpoint import list_checkpoints
from raydelta.training.job import make_job
from raydelta.training.run import prune, train_here, working_directory
from tests.sets import write_set
from tests.tiny import TINY


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("data")
    synthetic = write_set(folder / "simulated", "synthetic", [(f"s{index}", "all") for index in range(12)])
    settings = TINY | {"data.synthetic": synthetic, "compute.precision": "fp32", "compute.report_every": 1}
    return load_config(overrides=settings)


def test_two_who_want_one_training_train_it_once(config: Config, tmp_path: Path) -> None:
    job = make_job("expert", config, tmp_path)
    reports: list[list[int]] = [[], [], []]

    def train(index: int) -> None:
        train_here(job, lambda metrics: reports[index].append(metrics["step"]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        racers = [threading.Thread(target=train, args=(index,)) for index in range(3)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(timeout=120)
    assert sorted(reports) == [[], [], [1, 2, 3, 4, 5, 6]]
    assert job.done
    assert sorted(path.name for path in tmp_path.iterdir()) == [job.directory.name, "unfinished"]


ENDLESS = """
import sys, time
from raydelta.training.job import Job
from raydelta.training.run import train_here

def report(metrics):
    print(metrics["step"], flush=True)
    if metrics["step"] == 3:
        time.sleep(100)

train_here(Job.model_validate_json(sys.stdin.read()), report)
"""


def test_the_training_of_a_killed_process_is_taken_over(config: Config, tmp_path: Path) -> None:
    job = make_job("expert", override(config, {"compute.checkpoint_every": 2}), tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdin and owner.stdout
    owner.stdin.write(json.dumps(job.model_dump(mode="json")))
    owner.stdin.close()
    assert [owner.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
    threading.Timer(1.5, owner.kill).start()
    steps: list[Any] = []
    with pytest.warns(UserWarning, match=f"{job.directory.name}: another command is making it"):
        train_here(job, lambda metrics: steps.append(metrics["step"]))
    owner.wait()
    assert steps == [3, 4, 5, 6], "it goes on from the checkpoint of step 2"
    assert job.done
    assert not working_directory(job).exists()


def test_a_training_that_ended_early_keeps_its_curve_alone(config: Config, tmp_path: Path) -> None:
    job = make_job("expert", override(config, {"compute.checkpoint_every": 2}), tmp_path)

    def stop(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            assert not prune(job), "while it trains, nothing is removed"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_here(job, stop)
    assert [path.name for path in list_checkpoints(working_directory(job))] == ["checkpoint-2"]
    assert prune(job)
    assert [path.name for path in working_directory(job).iterdir()] == ["curve.jsonl"]
    assert prune(make_job("expert", override(config, {"seed": 9}), tmp_path)), "one that never began"
    steps: list[int] = []
    train_here(job, lambda metrics: steps.append(metrics["step"]))
    assert steps == [1, 2, 3, 4, 5, 6]
