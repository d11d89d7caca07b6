import json
import os
import shutil
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from raydelta.config import load_config, save_config
from raydelta.errors import UserError
from raydelta.results.runs import (
    compare_runs,
    find_leftovers,
    format_comparison,
    format_runs,
    list_runs,
    prune,
    resolve_run,
)
from raydelta.results.table import write_table
from raydelta.storage.bucket import open_copy, open_runs, publish
from raydelta.storage.files import shown
from raydelta.storage.locks import exclusive
from raydelta.training.curve import format_curve
from tests.sweep import make_rows, make_sweep


def make_stage(runs: Path, name: str, kind: str, age: float, **fields: object) -> Path:
    """A finished training as it lies on disk, so many seconds old."""
    directory = runs / name
    (directory / "checkpoint").mkdir(parents=True)
    save_config(
        load_config(overrides={"data.real": "/data/street-0123456789"}), directory / "checkpoint" / "config.yaml"
    )
    for file in ("state.pt", "rank-0.pt", "networks.safetensors"):
        (directory / "checkpoint" / file).write_bytes(b"x" * 100)
    (directory / "stage.json").write_text(json.dumps({"kind": kind, "metrics": {"miou": 31.0}} | fields))
    os.utime(directory / "stage.json", (time.time() - age,) * 2)
    return directory


def make_unfinished(runs: Path, name: str) -> Path:
    directory = runs / "unfinished" / name
    (directory / "checkpoint-20").mkdir(parents=True)
    (directory / "curve.jsonl").write_text(format_curve([{"step": 20, "steps": 60, "miou": 12.0}]))
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A sweep with its expert and one trial, a training by itself, and one that was interrupted."""
    runs = tmp_path / "runs"
    sweep = make_sweep(runs, trials=3, failed=0, real="/data/street-0123456789")
    trials = json.loads((sweep / "trials.json").read_text())
    trials[0]["stage"] = "translator-a"
    (sweep / "trials.json").write_text(json.dumps(trials))
    make_stage(runs, "expert-1", "expert", 900)
    make_stage(runs, "translator-a", "translator", 800, expert="expert-1")
    make_stage(runs, "translator-b", "translator", 10, expert="expert-1")
    make_unfinished(runs, "student-c")
    for path in (sweep, *sweep.glob("*")):
        os.utime(path, (time.time() - 100,) * 2)
    return runs


def test_what_lies_there_is_listed_with_what_it_belongs_to(runs: Path) -> None:
    listed = {run.name: run for run in list_runs(runs)}
    sweep = listed["tune-made-0123456789"]
    assert (sweep.kind, sweep.state, sweep.data) == ("sweep", "finished", "street")
    assert sweep.best == "guided, 28 labels" and sweep.miou is not None and 30 < sweep.miou < 60
    assert {name: run.part_of for name, run in listed.items() if run.part_of} == {
        "expert-1": sweep.name,
        "translator-a": sweep.name,
    }
    interrupted = listed["student-c"]
    assert (interrupted.state, interrupted.progress, interrupted.miou) == ("unfinished", "20 of 60 steps", 12.0)
    with exclusive(runs / "student-c"):
        assert {run.name: run.state for run in list_runs(runs)}["student-c"] == "running"


def test_a_damaged_run_does_not_hide_the_others(runs: Path) -> None:
    (runs / "tune-made-0123456789" / "run.json").write_text("{")
    (runs / "tune-made-0123456789" / "table.json").write_text("{")
    (runs / "translator-a" / "stage.json").write_text("{")
    assert len(list_runs(runs)) == 5
    assert list_runs(runs.parent / "nowhere") == []


def test_a_run_is_found_by_path_name_and_age(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_run("latest", runs) == runs / "translator-b"
    assert resolve_run(runs / "expert-1", "elsewhere") == runs / "expert-1"
    assert resolve_run("expert-1", runs) == runs / "expert-1"
    assert resolve_run("made-0123456789", runs) == runs / "tune-made-0123456789"
    assert resolve_run("student-c", runs) == runs / "unfinished" / "student-c"
    os.utime(runs / "tune-made-0123456789" / "best.yaml")
    assert resolve_run("latest", runs) == runs / "tune-made-0123456789"
    monkeypatch.chdir(runs.parent)
    assert resolve_run("latest") == Path("runs/tune-made-0123456789")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latest", "no finished sweep or training there"),
        ("translator-d", "no such run, neither here nor in .*; did you mean translator-"),
        ("zzz", "raydelta runs lists what there is"),
        ("/somewhere/else", "/somewhere/else: no such run"),
    ],
)
def test_a_run_that_is_not_there_is_an_error_with_a_way_out(runs: Path, name: str, message: str) -> None:
    where = runs.parent / "nowhere" if name == "latest" else runs
    with pytest.raises(UserError, match=message):
        resolve_run(name, where)


def test_two_runs_are_compared_by_settings_and_rows(runs: Path) -> None:
    first, second = runs / "translator-a", runs / "translator-b"
    config = load_config(overrides={"data.real": "/data/street-0123456789", "guidance.weight": 0.9})
    save_config(config, second / "checkpoint" / "config.yaml")
    write_table(first, make_rows((7,), (0,))[:2])
    found = compare_runs(first, second)
    assert found.settings == {"guidance.weight": (0.5, 0.9)}
    assert list(found.rows) == ["synthetic only", "unguided"] and all(b is None for _, b in found.rows.values())
    text = format_comparison(found, ["a", "b"]).splitlines()
    assert text[:2] == ["setting          a    b", "guidance.weight  0.5  0.9"]
    assert text[-1].split()[0] == "unguided" and text[-1].split()[-1] == "–"
    with pytest.raises(UserError, match="neither a sweep nor a finished training"):
        compare_runs(first, runs / "unfinished" / "student-c")
    sweep = runs / "tune-made-0123456789"
    assert not [key for key in compare_runs(sweep, second).settings if key.startswith("space.")]
    again = runs / "tune-again-0123456789"
    shutil.copytree(sweep, again)
    tree = json.loads((again / "run.json").read_text())
    tree["space"]["trials"] = 5
    (again / "run.json").write_text(json.dumps(tree))
    assert compare_runs(sweep, again).settings == {"space.trials": (3, 5)}


def test_the_list_is_a_line_for_each_run(runs: Path) -> None:
    later = datetime.now() + timedelta(hours=3)
    lines = format_runs(list_runs(runs), later).splitlines()
    (line,) = [line for line in lines if line.startswith("student-c")]
    assert line.split("  ")[1:] and "unfinished, 20 of 60 steps" in line and "3 h" in line and "12.0" in line
    assert line.index("3 h") == lines[0].index("age"), "columns are aligned"
    assert format_runs([]) == "no run there; start with raydelta tune"


def test_prune_leaves_every_finished_stage_and_what_runs(runs: Path) -> None:
    stray = runs / ".translator-x.0123abcd"
    stray.mkdir()
    with exclusive(runs / "student-c"):
        assert find_leftovers(runs) == [], "a command works there"
    found = find_leftovers(runs)
    assert {leftover.path.relative_to(runs).as_posix() for leftover in found} == {
        "unfinished/student-c",
        stray.name,
        *(
            f"{name}/checkpoint/{file}"
            for name in ("expert-1", "translator-a", "translator-b")
            for file in ("state.pt", "rank-0.pt")
        ),
    }
    before = set(runs.glob("*/stage.json"))
    freed = prune(found)
    assert freed == sum(leftover.bytes for leftover in found) > 600
    assert set(runs.glob("*/stage.json")) == before
    assert all((path.parent / "checkpoint" / "networks.safetensors").exists() for path in before)
    assert find_leftovers(runs) == []
    shutil.rmtree(runs)
    assert find_leftovers(runs) == []


@pytest.fixture
def published(runs: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same runs in a bucket, published by another machine."""
    address = f"{s3}/{tmp_path.name}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    copy = open_copy(address)
    for name in ("expert-1", "translator-a", "tune-made-0123456789", "unfinished", "translator-b"):
        shutil.copytree(runs / name, copy / name)
        publish(copy / name)
        time.sleep(1.1)  # a store tells times by the second
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    return address


def test_runs_in_a_bucket_are_listed_compared_and_pruned(published: str, runs: Path) -> None:
    def summary(where: str | Path) -> list[tuple[object, ...]]:
        return [(run.name, run.kind, run.state, run.part_of, run.miou, run.progress) for run in list_runs(where)]

    assert sorted(map(str, summary(published))) == sorted(map(str, summary(runs)))
    assert list_runs(published)[0].name == "translator-b", "the newest first"
    assert resolve_run("latest", published).name == "translator-b"
    here = compare_runs(runs / "translator-a", runs / "translator-b")
    assert compare_runs(*(resolve_run(f"{published}/{name}") for name in ("translator-a", "translator-b"))) == here
    with pytest.raises(
        UserError, match=rf"{published}/translator-x: no such run; raydelta runs --runs {published} lists"
    ):
        resolve_run(f"{published}/translator-x")
    with pytest.raises(UserError, match=rf"neither here nor in {published}; did you mean translator-a"):
        resolve_run("translator-aa", published)

    with exclusive(open_runs(published) / "student-c"):
        assert find_leftovers(published) == [], "a command works there"
    found = find_leftovers(published)
    assert next(shown(leftover.path) for leftover in found) == f"{published}/unfinished/student-c"
    assert prune(found) == sum(leftover.bytes for leftover in found) > 0
    assert find_leftovers(published) == []
    assert {run.state for run in list_runs(published)} == {"finished"}
