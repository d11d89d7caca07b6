import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydelta.config import Config, load_config, override
from raydelta.errors import UserError
from raydelta.results.runs import list_runs
from raydelta.storage import files as storage
from raydelta.storage import locks
from raydelta.storage.bucket import fetch, names_in, open_runs, publish
from raydelta.training.checkpoint import (
    find_whole,
    keep_checkpoint,
    list_checkpoints,
    read_config,
    read_meta,
    read_weights,
)
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.job import label_ids, make_job, read_job
from raydelta.training.run import prune, train_here, working_directory
from raydelta.training.trained import load_segmenter
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
import torch
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


def test_a_stage_keeps_the_networks_and_no_optimiser(config: Config, tmp_path: Path) -> None:
    job = make_job("expert", config, tmp_path)
    train_here(job)
    stage = job.directory / "checkpoint"
    assert sorted(path.name for path in stage.iterdir()) == ["config.yaml", "meta.json", "networks.safetensors"]
    assert find_whole([stage]) == stage, "its digests are of what is there"
    assert read_config(stage) == job.config
    assert read_weights(stage, "segmenter")


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary files are on another file system than the runs: keeping a checkpoint takes a copy."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_checkpoint_is_copied_beside_the_training_and_at_most_one_is_behind(
    config: Config, tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("expert", override(config, {"compute.checkpoint_every": 2}), tmp_path)
    begun: list[int] = []
    ended: list[int] = []

    def slow(source: Path, folder: Path) -> None:
        begun.append(read_meta(source)["step"])
        time.sleep(1)
        keep_checkpoint(source, folder)
        ended.append(begun[-1])

    monkeypatch.setattr("raydelta.training.run.keep_checkpoint", slow)
    seen: dict[int, tuple[int, int]] = {}
    train_here(job, lambda metrics: seen.update({metrics["step"]: (len(begun), len(ended))}))
    assert seen[3] == (1, 0), "step 3 does not wait for the copy of step 2"
    assert seen[4] in ((1, 1), (2, 1)), "step 4 brings the next one, and waits"
    assert seen[6] == (2, 2), "the last step waits"
    assert job.done
    assert list(other_disk.iterdir()) == []


def test_a_copy_that_fails_stops_the_training_at_its_next_report(
    config: Config, tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("expert", override(config, {"compute.checkpoint_every": 2}), tmp_path)

    def fail(source: Path, folder: Path) -> None:
        raise UserError("no space left")

    monkeypatch.setattr("raydelta.training.run.keep_checkpoint", fail)
    steps: list[int] = []

    def on_report(metrics: dict[str, Any]) -> None:
        steps.append(metrics["step"])
        if metrics["step"] == 2:
            time.sleep(2.5)  # it is tried twice

    with pytest.raises(UserError, match="no space left"):
        train_here(job, on_report)
    assert steps == [1, 2]
    assert list(other_disk.iterdir()) == []


def on_machine(name: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs of a bucket as another machine sees them: its cache is another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    return open_runs(address, write=True)


def test_a_training_in_a_bucket_goes_on_on_another_machine(
    config: Config, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 5 of 6; the checkpoint of step 4 is damaged in the bucket."""
    config = override(config, {"compute.checkpoint_every": 2})
    whole = make_job("expert", config, tmp_path / "here")
    train_here(whole)
    job = make_job("expert", config, on_machine("one", f"{s3}/killed", tmp_path, monkeypatch))
    code = ENDLESS.replace("== 3", "== 5")
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin and owner.stdout
    owner.stdin.write(json.dumps(job.model_dump(mode="json")))
    owner.stdin.close()
    assert [owner.stdout.readline() for _ in range(5)] == [f"{step}\n" for step in range(1, 6)]

    runs = on_machine("two", f"{s3}/killed", tmp_path, monkeypatch)
    last = working_directory(make_job("expert", config, runs)) / "checkpoint-4" / "networks.safetensors"
    deadline = time.monotonic() + 20
    while not last.with_name("meta.json").exists() and time.monotonic() < deadline:
        fetch(last.parent)
        time.sleep(0.2)
    (described,) = [run for run in list_runs(runs) if run.name == job.directory.name]
    assert described.state == "running"
    assert described.progress in ("4 of 6 steps", "5 of 6 steps"), "its curve comes before its checkpoint"
    owner.kill()
    owner.wait()
    monkeypatch.setattr(locks, "LEASE", 3.0)
    content = bytearray(last.read_bytes())
    content[-1000] ^= 1
    last.write_bytes(content)
    publish(last)

    steps: list[int] = []
    taken_over = make_job("expert", config, on_machine("three", f"{s3}/killed", tmp_path, monkeypatch))
    with pytest.warns(UserWarning) as warned:
        train_here(taken_over, lambda metrics: steps.append(metrics["step"]))
    said = [str(each.message) for each in warned]
    assert any("another command is making it" in text for text in said)
    assert any("networks.safetensors: damaged" in text and "going on from checkpoint-2" in text for text in said)
    assert steps == [3, 4, 5, 6]

    runs = on_machine("four", f"{s3}/killed", tmp_path, monkeypatch)
    found = read_job(runs / job.directory.name)
    assert found.done and label_ids(found) == ([], [])
    stages = [path / "checkpoint" for path in (whole.directory, found.directory)]
    digests = [read_meta(stage)["sha256"]["networks.safetensors"] for stage in stages]
    assert digests[0] == digests[1], "bit for bit as without a kill"
    load_segmenter(found.directory, 11)
    assert [report["step"] for report in read_curve(found.directory / CURVE)] == [1, 2, 3, 4, 5, 6]
    assert names_in(runs / "unfinished") == []
    assert [run.state for run in list_runs(runs)] == ["finished"]


def test_a_bucket_that_goes_away_is_waited_for_and_then_named_and_nothing_is_lost(
    config: Config, stoppable_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "AWAY", 4.0)
    job = make_job(
        "expert",
        override(config, {"compute.checkpoint_every": 2}),
        on_machine("one", "s3://away/runs?region=us-east-1", tmp_path, monkeypatch),
    )

    def go(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            stoppable_s3.stop()

    with pytest.warns(UserWarning, match="s3://away/runs.*: away; waiting"), pytest.raises(UserError) as caught:
        train_here(job, go)
    assert "s3://away/runs" in str(caught.value) and "run the same command again" in str(caught.value)
    kept = str(caught.value).rpartition("kept in ")[2]
    assert list_checkpoints(Path(kept) / "unfinished" / job.directory.name)[0].name == "checkpoint-4"
    stoppable_s3.start()
    steps: list[int] = []
    train_here(job, lambda metrics: steps.append(metrics["step"]))
    assert steps == [5, 6], "from what was kept here"
    assert job.done
