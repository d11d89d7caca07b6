"""What a stranger's training, sweep, export, config, space or labels may hold: only ``UserError`` comes out.

``HYPOTHESIS_PROFILE=long`` tries many more mutations, as the scheduled job does. Data sets:
``tests/data/test_hostile.py``.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from raydelta.config import load_config
from raydelta.data.taxonomy import CAMVID11
from raydelta.deploy.network import build, choose_job, read_network, save
from raydelta.errors import UserError
from raydelta.results.evaluate import count_labels, device_hours, method_of
from raydelta.results.page import Gallery
from raydelta.results.report import write_report
from raydelta.results.runs import compare_runs, find_leftovers, format_comparison, format_runs, list_runs
from raydelta.results.table import read_recommended
from raydelta.search_space import load_space, open_space, within_labels
from raydelta.selection.bought import read_order
from raydelta.selection.rle import encode_mask
from raydelta.selection.tools import Task, read_masks, write_tasks
from raydelta.training.checkpoint import find_whole, list_checkpoints, read_state
from raydelta.training.job import Job, read_job
from tests.hostile import VALUES, mutated, only_user_errors, replaced
from tests.sweep import make_sweep

SLOW = 10  # where a network is made or a page drawn: so many times fewer examples


def draw_nothing(jobs: Mapping[str, Job]) -> Gallery:
    raise UserError("not drawn")


def look(folder: Path) -> None:
    """What costs little: everything but networks and pages."""
    run = next(folder.glob("translator-*"))

    def figures() -> None:
        job = read_job(run)
        count_labels(job), device_hours(job), method_of(job), job.taxonomy

    only_user_errors(
        figures,
        lambda: read_state(folder / "unfinished" / run.name / "checkpoint-3", 0),
        lambda: find_whole(list_checkpoints(folder / "unfinished" / run.name)),
        lambda: format_runs(list_runs(folder)),
        lambda: compare_runs(run, run),
    )


def load(folder: Path) -> None:
    only_user_errors(lambda: read_network(next(folder.glob("translator-*"))))


def show(folder: Path) -> None:
    run = next(folder.glob("translator-*"))
    only_user_errors(
        lambda: write_report(run, draw_nothing), lambda: write_report(folder / "unfinished" / run.name, draw_nothing)
    )


def look_at_a_sweep(folder: Path) -> None:
    run = next(folder.glob("tune-*"))
    only_user_errors(
        lambda: read_recommended(run),
        lambda: choose_job(run),
        lambda: choose_job(run, "ensemble"),
        lambda: format_runs(list_runs(folder)),
        lambda: find_leftovers(folder),
        lambda: format_comparison(compare_runs(run, run), ["a", "b"]),
    )


def show_a_sweep(folder: Path) -> None:
    only_user_errors(lambda: write_report(next(folder.glob("tune-*")), draw_nothing))


def fuzz(file: Path, readers: Callable[[], object], examples: int = 1) -> None:
    """Give mutations of a file to its readers; one in ``examples`` of the profile's, where they are slow."""
    original = file.read_bytes()

    found = [Phase.explicit, Phase.generate]  # where readers are slow, a smaller example takes minutes to find

    @settings(max_examples=settings().max_examples // examples, phases=found if examples == SLOW else tuple(Phase))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        if file.suffix == ".jsonl" or file.name == "result.json":
            lines = [json.loads(line) for line in original.splitlines()]
            content = "".join(json.dumps(line) + "\n" for line in replaced_lines(lines, data.draw)).encode()
        elif file.suffix in (".json", ".yaml") and data.draw(st.booleans()):
            tree = json.loads(original) if file.suffix == ".json" else yaml.safe_load(original)
            content = json.dumps(replaced(tree, data.draw)).encode()  # JSON is YAML
        else:
            content = data.draw(mutated(original))
        file.write_bytes(content)
        readers()

    try:
        run()
    finally:
        file.write_bytes(original)


def replaced_lines(lines: list[Any], draw: st.DrawFn) -> list[Any]:
    tree = replaced(lines, draw)
    return tree if isinstance(tree, list) else [tree]


@pytest.fixture(scope="module")
def training(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's runs directory, and the same training unfinished. No digest says what was changed in it."""
    folder = tmp_path_factory.mktemp("training")
    job = trained["translator"]
    for source in (job.directory, job.expert):
        shutil.copytree(source, folder / source.name)
        meta = folder / source.name / "checkpoint" / "meta.json"
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"sha256": {}}))
    unfinished = folder / "unfinished" / job.directory.name
    shutil.copytree(folder / job.directory.name / "checkpoint", unfinished / "checkpoint-3")
    shutil.copy(job.directory / "curve.jsonl", unfinished)
    for name in ("state.pt", "rank-0.pt"):  # a finished training has none
        torch.save({"moments": torch.arange(10.0), "step": 3}, unfinished / "checkpoint-3" / name)
    return folder


@pytest.mark.parametrize(
    ("name", "read", "examples"),
    [
        ("translator-*/stage.json", look, 1),
        ("expert-*/stage.json", look, 2),
        ("translator-*/stage.json", load, SLOW),
        ("translator-*/stage.json", show, SLOW),
        ("translator-*/curve.jsonl", show, SLOW),
        ("unfinished/*/curve.jsonl", look, 2),
        ("unfinished/*/curve.jsonl", show, SLOW),
        ("translator-*/checkpoint/meta.json", look, 2),
        ("translator-*/checkpoint/config.yaml", look, 2),
        ("translator-*/checkpoint/config.yaml", load, SLOW),
        ("expert-*/checkpoint/config.yaml", load, SLOW),
        ("translator-*/checkpoint/networks.safetensors", load, SLOW),
        ("unfinished/*/checkpoint-3/state.pt", look, 2),
        ("unfinished/*/checkpoint-3/rank-0.pt", look, 2),
    ],
)
def test_a_training(training: Path, name: str, read: Callable[[Path], None], examples: int) -> None:
    (file,) = training.glob(name)
    fuzz(file, lambda: read(training), examples)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    run = make_sweep(folder, trials=4)
    (run / "headroom.json").write_text(json.dumps({"findings": ["none"]}))
    methods = {"guided": {"stage": "translator-1", "members": []}, "ensemble": {"stage": "e", "members": ["a", "b"]}}
    (run / "methods.json").write_text(json.dumps(methods))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "trials.json", "table.json", "methods.json", "headroom.json", "best.yaml"),
        *("sweep/ab_00001/params.json", "sweep/ab_00001/result.json"),
    ],
)
@pytest.mark.parametrize(("read", "examples"), [(look_at_a_sweep, 2), (show_a_sweep, SLOW)])
def test_a_sweep(sweep: Path, name: str, read: Callable[[Path], None], examples: int) -> None:
    (file,) = sweep.glob(f"tune-*/{name}")
    fuzz(file, lambda: read(sweep), examples)


@pytest.mark.parametrize("read", [look_at_a_sweep, show_a_sweep])
def test_a_sweep_that_has_not_ended(sweep: Path, tmp_path: Path, read: Callable[[Path], None]) -> None:
    run = Path(shutil.copytree(sweep, tmp_path / "copy")) / "tune-made-0123456789"
    (run / "trials.json").unlink()
    fuzz(run / "sweep" / "ab_00001" / "result.json", lambda: read(run.parent), SLOW)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_an_exported_folder(trained: dict[str, Any], tmp_path: Path, name: str) -> None:
    save(build(trained["translator"]), tmp_path / "exported")
    fuzz(
        tmp_path / "exported" / name, lambda: only_user_errors(lambda: read_network(tmp_path / "exported")), examples=3
    )


@pytest.mark.parametrize("name", ["laptop", "active", "controls"])
def test_a_space(tmp_path: Path, name: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(load_space(name).model_dump(mode="json", exclude_defaults=True)))

    def read() -> None:
        space = within_labels(load_space(str(file)), 30)
        for dimension in space.search.values():
            dimension.sampler()

    fuzz(file, lambda: only_user_errors(read))


def test_a_config(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    ids = {"train": ["a", "b"], "validation": ["c"], "cells": {"grid": [2, 2], "images": {"a": [0, 3]}}}
    config = load_config(overrides={"labels.ids": ids})
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    fuzz(file, lambda: only_user_errors(lambda: load_config(file=file)))


@given(text=st.text(max_size=60) | st.sampled_from(["data", "search.cycle.real", "labels.ids", "seed"]), value=VALUES)
def test_overrides(text: str, value: Any) -> None:
    for given_text in (text, f"{text}={text}", f"{text}={json.dumps(value)}"):
        only_user_errors(lambda given_text=given_text: load_config(overrides=[given_text]))
        only_user_errors(lambda given_text=given_text: open_space("laptop", [given_text]))


SIZES = {"a": (16, 8), "b": (16, 8)}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Masks of both tools that photographs are labelled with."""
    mask = np.random.default_rng(0).integers(0, len(CAMVID11), (8, 16)).astype(np.uint8)
    write_tasks([Task(name, f"{name}.jpg", (), mask) for name in SIZES], CAMVID11, "a model", tmp_path)
    tasks = json.loads((tmp_path / "label-studio.json").read_text())
    for task in tasks:
        results = task.pop("predictions")[0]["result"][:1]
        results[0]["value"]["rle"] = encode_mask(mask == 0)
        task["annotations"] = [{"was_cancelled": False, "result": results}]
    (tmp_path / "studio.json").write_text(json.dumps(tasks))
    with zipfile.ZipFile(tmp_path / "cvat-drafts.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["studio.json", "cvat-drafts.zip", "unpacked/labelmap.txt", "unpacked/SegmentationClass/a.png"]
)
def test_bought_labels(export: Path, name: str) -> None:
    given_export = export / name if "/" not in name else export / "unpacked"
    fuzz(export / name, lambda: only_user_errors(lambda: read_masks(given_export, SIZES, CAMVID11)))


def test_what_a_selection_asked_for(tmp_path: Path) -> None:
    cells = {"grid": [2, 2], "images": {"a": [0]}}
    order = {"format": 1, "data": "set", "images": ["a"], "cells": cells, "train": ["labels.budget=4"]}
    (tmp_path / "selection.json").write_text(json.dumps(order))
    fuzz(tmp_path / "selection.json", lambda: only_user_errors(lambda: read_order(tmp_path)))
