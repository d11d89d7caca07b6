"""Runs that raydelta left before its modules moved into rooms: read, gone on with, and nothing trained again.

``fixtures/before.tar.xz`` holds a sweep that ended, one that was interrupted, and all that they build on, as commit
a08896c wrote them; Adam's state and pictures are left out. Only the paths in it are changed here.
"""

import hashlib
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import raydelta
from raydelta.compute.device import Place
from raydelta.config import override
from raydelta.deploy.predict import predict
from raydelta.results.evaluate import evaluate_job, method_of
from raydelta.results.report import write_report
from raydelta.results.sweep import read_sweep, read_trials
from raydelta.results.table import read_table
from raydelta.selection.select import select
from raydelta.training.assemble import assemble, open_large_sets
from raydelta.training.job import read_job
from raydelta.tuning.tune import Outcome, tune
from tests.tiny import unpack

FIXTURE = Path(__file__).parent / "fixtures" / "before.tar.xz"
MADE_IN = "/tmp/raydelta/runs"
ROWS = ["synthetic only", "unguided", "guided", "joint training", "student", "mean teacher", "ensemble"]
ROWS += ["ensemble, untranslated"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The runs folder of before, with the paths of this machine in it."""
    with tarfile.open(FIXTURE) as archive:
        unpack(archive, tmp_path)
    runs = tmp_path / "runs"
    for file in runs.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml") and not file.name.startswith("basic-variant"):  # a pickle
            file.write_text(file.read_text().replace(MADE_IN, str(runs)))
    for meta in runs.rglob("checkpoint*/meta.json"):
        tree = json.loads(meta.read_text())
        tree["sha256"]["config.yaml"] = hashlib.sha256(meta.with_name("config.yaml").read_bytes()).hexdigest()
        meta.write_text(json.dumps(tree))
    return runs


def sweep_of(runs: Path, name: str) -> Path:
    (directory,) = runs.glob(f"tune-{name}-*")
    return directory


def tune_again(directory: Path, folder: Path, resume: bool = False) -> Outcome:
    """The command that made a sweep, with its space and config as files."""
    sweep = read_sweep(directory)
    assert sweep is not None
    space, config = folder / "again.yaml", folder / "config.yaml"
    space.write_text(yaml.safe_dump(sweep.space.model_dump(mode="json", exclude_none=True)))
    config.write_text(yaml.safe_dump(sweep.config.model_dump(mode="json")))
    return tune(str(space), preset="laptop", config_file=config, runs=directory.parent, resume=resume)


def stages(runs: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")}


def test_the_same_command_finds_its_sweep_and_its_data(ray_session: None, runs: Path, tmp_path: Path) -> None:
    """Segmenters are trained differently since, so they are other stages; those of before stay as they are.

    Ray Tune's state names modules that are gone, so the search begins anew.
    """
    directory, before = sweep_of(runs, "stopped"), stages(runs)
    with pytest.warns(UserWarning, match="the search begins anew, and no training that has finished is repeated"):
        outcome = tune_again(directory, tmp_path, resume=True)
    assert outcome.directory == directory and outcome.failed == []
    assert {path: time for path, time in stages(runs).items() if path in before} == before
    assert max(trial.step for trial in read_trials(directory)) == 60
    assert len(list(runs.glob("data/*/manifest.json"))) == 2, "no data set was made again"


def test_its_report_names_what_was_trained(runs: Path) -> None:
    page = write_report(sweep_of(runs, "before")).read_text()
    assert "Gallery</h2>" in page and all(row in page for row in ROWS)
    assert "goes on with" in write_report(sweep_of(runs, "stopped")).read_text()


def test_its_models_predict_and_are_evaluated(runs: Path, tmp_path: Path) -> None:
    directory = sweep_of(runs, "before")
    table = {row.method: row.miou for row in read_table(directory) if row.split == "test"}
    photograph = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    for method in ("guided", "student", "ensemble"):
        ids = raydelta.load(directory, method)(photograph).ids
        assert ids.shape == (40, 90) and int(ids.max()) < 11
    (training,) = runs.glob("joint-training-*")
    job = read_job(training)
    (row,) = [row for row in evaluate_job(method_of(job), job) if row.split == "test"]
    assert row.miou == pytest.approx(table["joint training"], abs=0.2)


def test_predict_and_select_take_the_sweep(ray_session: None, runs: Path, tmp_path: Path) -> None:
    directory = sweep_of(runs, "before")
    Image.new("RGB", (90, 40), (90, 120, 150)).save(tmp_path / "photograph.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = predict(directory, [str(tmp_path / "photograph.png")], tmp_path / "masks", method="student")
    assert outcome.images == 1
    assert len(select(directory, 2, "random", window=1).choices) == 2


LOSSES: dict[str, list[dict[str, float]]] = {
    "expert": [
        {"cross_entropy": 2.526414},
        {"cross_entropy": 2.492381},
        {"cross_entropy": 2.457092},
    ],
    "translator": [
        {
            "gan_r2s": 0.8966222,
            "gan_s2r": 1.000748,
            "cycle_real": 0,
            "cycle_synthetic": 0,
            "identity_real": 0,
            "identity_synthetic": 0,
            "guidance": 2.382568,
            "dice": 0.924135,
            "d_synthetic": 0.455953,
            "d_real": 0.5232462,
        },
        {
            "gan_r2s": 0.8682845,
            "gan_s2r": 0.984188,
            "cycle_real": 0.004516092,
            "cycle_synthetic": 0.004706611,
            "identity_real": 0.003095514,
            "identity_synthetic": 0.003099096,
            "guidance": 2.378562,
            "dice": 0.9226997,
            "d_synthetic": 0.4413319,
            "d_real": 0.521451,
        },
        {
            "gan_r2s": 0.863381,
            "gan_s2r": 0.9633215,
            "cycle_real": 0.01867928,
            "cycle_synthetic": 0.02019711,
            "identity_real": 0.008931312,
            "identity_synthetic": 0.01093259,
            "guidance": 2.371159,
            "dice": 0.9207634,
            "d_synthetic": 0.4355866,
            "d_real": 0.5021377,
        },
    ],
    "student": [
        {"cross_entropy": 2.388393},
        {"cross_entropy": 2.3999},
        {"cross_entropy": 2.378237},
    ],
}
"""The first three steps on the data sets of the fixture, in fp32 with one thread. They were of a08896c, and are
recorded anew where the augmentation has changed: that of segmenters, and of the photographs that guide (in the
translator's first step ``guidance`` and ``dice`` alone)."""


@pytest.mark.parametrize("kind", ["expert", "translator", "student"])
def test_a_step_loses_what_it_lost_before(kind: str, runs: Path) -> None:
    job = read_job(sorted(runs.glob(f"{kind}-*"))[0])
    job = job.model_copy(update={"config": override(job.config, {"compute.precision": "fp32"})})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = assemble(job, open_large_sets(job), Place(torch.device("cpu")))
        for step, expected in enumerate(LOSSES[kind]):
            batch = {name: parts.augment(name, *stream.next()) for name, stream in parts.streams.items()}
            losses = parts.training.step(batch, step / 3)
            assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    finally:
        torch.set_num_threads(threads)
