"""What a stranger's run, space or config names on another machine is not opened before the user has asked for it."""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydelta.compute import asked
from raydelta.config import load_config
from raydelta.deploy.export import export
from raydelta.deploy.network import read_network
from raydelta.errors import UserError
from raydelta.results.evaluate import evaluate
from raydelta.results.report import report
from raydelta.selection.bought import import_labels
from raydelta.selection.headroom import measure_headroom
from raydelta.selection.select import select
from raydelta.tuning.tune import tune
from tests.test_search_space import write_space


class Counting(http.server.SimpleHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def do_HEAD(self) -> None:
        self.requests.append(self.path)
        super().do_HEAD()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(trained: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The address of a web server with the photographs of a training, and what it was asked for."""
    requests: list[str] = []
    handler = type("Handler", (Counting,), {"requests": requests})
    folder = Path(trained["translator"].config.data.real).parent
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/street", requests
        server.shutdown()


@pytest.fixture
def stranger(server: tuple[str, list[str]], trained: dict[str, Any], tmp_path: Path) -> Path:
    """A translator of somebody else, whose config names the server."""
    for source in (trained["translator"].directory, trained["translator"].expert):
        shutil.copytree(source, tmp_path / "runs" / source.name)
        file = tmp_path / "runs" / source.name / "checkpoint" / "config.yaml"
        tree = yaml.safe_load(file.read_text())
        tree["data"] |= {"real": server[0], "synthetic": server[0]}
        file.write_text(yaml.safe_dump(tree))
        meta = json.loads(file.with_name("meta.json").read_text())
        meta["sha256"]["config.yaml"] = hashlib.sha256(file.read_bytes()).hexdigest()
        file.with_name("meta.json").write_text(json.dumps(meta))
    return tmp_path / "runs" / trained["translator"].directory.name


def test_a_strangers_run_opens_nothing(
    stranger: Path, server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = r"data\.\w+ = http://127\.0\.0\.1:\d+/street, which no command of yours has named yet.*--trust"
    for use in (evaluate, partial(select, count=1), measure_headroom):
        with pytest.raises(UserError, match=refused):
            use(stranger)
    page = report(stranger).read_text()
    assert "The gallery: " in page and "no command of yours has named" in page
    read_network(stranger)
    monkeypatch.setattr("raydelta.deploy.export._write_programs", lambda *arguments: None)
    monkeypatch.setattr("raydelta.deploy.export._check", lambda *arguments: [])
    export(stranger, tmp_path / "exported")
    manifest = json.loads((stranger / "stage.json").read_text())
    del manifest["taxonomy"]  # as older stages: it is the data set's then
    (stranger / "stage.json").write_text(json.dumps(manifest))
    expert = stranger.parent / manifest["expert"] / "stage.json"
    expert.write_text(json.dumps({k: v for k, v in json.loads(expert.read_text()).items() if k != "taxonomy"}))
    with pytest.raises(UserError, match=refused):
        read_network(stranger)
    assert server[1] == []


def test_a_sweep_of_an_older_version_opens_nothing(server: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "tune-x").mkdir()
    (tmp_path / "tune-x" / "best.yaml").write_text(yaml.safe_dump({"data": {"real": server[0]}}))
    with pytest.raises(UserError, match="no command of yours has named"):
        read_network(tmp_path / "tune-x")
    assert server[1] == []


def test_whoever_asks_gets_it_and_is_not_asked_again(stranger: Path, server: tuple[str, list[str]]) -> None:
    (row,) = [row for row in evaluate(stranger, trust=True) if row.split == "test"]
    assert server[1] != []
    assert evaluate(stranger)[0] == row
    assert "no command of yours" not in report(stranger).read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.real", "http://127.0.0.1:1/set"),
        ("data.synthetic", "s3://bucket/set"),
        ("tracking.mlflow", "http://127.0.0.1:1"),
        ("tracking.wandb", "somebody/project"),
        ("segmenter.weights", "imagenet"),
    ],
)
def test_a_strangers_space_or_config_names_nothing(field: str, value: str, tmp_path: Path) -> None:
    section, name = field.split(".")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({section: {name: value}}))
    space = write_space(tmp_path, config={field: value})
    for use in (partial(tune, space), partial(tune, config_file=tmp_path / "config.yaml")):
        with pytest.raises(UserError, match=rf"a config or space file:? names {field} = .*on the command line"):
            use(runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_what_a_command_line_names_is_asked_for(tmp_path: Path) -> None:
    config = load_config(overrides={"data.real": "s3://bucket/set/", "segmenter.weights": "imagenet"})
    with pytest.raises(UserError):
        asked.check_named(config, {"segmenter.weights": "imagenet"})
    asked.check_named(config, {"data.real": "s3://bucket/set/", "segmenter.weights": "imagenet"})
    asked.check_named(config, {"segmenter.weights": "imagenet"})
    asked.check_asked({"data.real": "s3://bucket/set"}, "a run", "ask")
    for other in ("s3://bucket/set2", "s3://bucket", "http://bucket/set"):
        with pytest.raises(UserError, match=r"a run: names data\.real = .*ask"):
            asked.check_asked({"data.real": other}, "a run", "ask")


def test_files_of_this_machine_and_a_submitted_jobs_addresses_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.check_asked({"a": "/data/set", "b": "simulated", "c": "sqlite:///mlflow.db", "d": None}, "a run", "ask")
    monkeypatch.setenv(asked.VARIABLE, "s3://one/set\ns3://two/set")
    asked.check_asked({"a": "s3://one/set", "b": "s3://two/set/"}, "a run", "ask")


def test_a_home_that_cannot_be_written_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    asked.remember(["s3://bucket/set"])
    with pytest.raises(UserError):
        asked.check_asked({"a": "s3://bucket/set"}, "a run", "ask")


def test_a_strangers_selection_opens_nothing(server: tuple[str, list[str]], tmp_path: Path) -> None:
    order = {"format": 1, "data": server[0], "images": ["a"], "cells": None, "train": []}
    (tmp_path / "selection.json").write_text(json.dumps(order))
    with pytest.raises(UserError, match=r"no command of yours has named.*--data"):
        import_labels(tmp_path, tmp_path, tmp_path / "new")
    assert server[1] == []


@pytest.fixture(autouse=True)
def own_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
