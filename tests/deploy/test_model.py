import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import raydelta
from raydelta.compute.device import Place
from raydelta.config import save_config
from raydelta.data.pixels import to_float
from raydelta.data.taxonomy import CAMVID11
from raydelta.deploy.model import LoadedModel
from raydelta.deploy.network import build, read_network, save
from raydelta.errors import UserError
from raydelta.results.pictures import overlay
from raydelta.results.row import Row
from raydelta.results.runs import resolve_run
from raydelta.results.table import write_table
from raydelta.training.job import make_job
from raydelta.training.stage import read_stage
from raydelta.training.trained import load_model
from tests.deploy.test_predict import photograph
from tests.sets import HEIGHT, WIDTH


def test_load_is_the_model_that_was_evaluated(trained: dict[str, Any]) -> None:
    jobs = dict(trained)
    config, runs = jobs["expert"].config, jobs["expert"].directory.parent
    jobs["ensemble"] = make_job("ensemble, untranslated", config, runs, jobs["expert"].directory)
    image = torch.from_numpy(photograph(HEIGHT, WIDTH))[None]
    for job in jobs.values():
        model = build(job)
        with torch.inference_mode():
            expected = load_model(job, Place(torch.device("cpu"))).predict(to_float(image.permute(0, 3, 1, 2)))
            assert torch.allclose(model.logits(image), expected, atol=1e-5), job.kind
            assert model(image).shape == (1, HEIGHT, WIDTH) and model(image).dtype == torch.uint8


def test_matched_colours_are_saved_and_read_again(trained: dict[str, Any], tmp_path: Path) -> None:
    model = build(trained["colours matched"])
    save(model, tmp_path)
    image = torch.from_numpy(photograph(HEIGHT, WIDTH))[None]
    with torch.inference_mode():
        torch.testing.assert_close(read_network(tmp_path).logits(image), model.logits(image))
        untouched = read_network(trained["expert"].directory).logits(image)
        assert not torch.allclose(untouched, model.logits(image), atol=1e-2)


def test_load_takes_the_best_of_a_sweep_or_any_row_of_its_table(trained: dict[str, Any], tmp_path: Path) -> None:
    job = trained["translator"]
    sweep = job.directory.parent / "tune-test"
    sweep.mkdir()
    save_config(job.config, sweep / "best.yaml")
    assert (raydelta.load(sweep).name, raydelta.load(sweep).method) == (job.directory.name, "guided")
    assert raydelta.load(sweep, "mean-teacher").name == trained["mean teacher"].directory.name
    assert raydelta.load(sweep, "synthetic only").name == trained["expert"].directory.name
    assert raydelta.load(sweep, "ensemble-untranslated").method == "ensemble, untranslated"
    ensemble = raydelta.load(sweep, "ensemble, untranslated").network
    assert len(ensemble.chains) == 2
    image = torch.from_numpy(photograph(HEIGHT, WIDTH))[None]
    parts = [read_network(trained[kind].directory).logits(image) for kind in ("joint training", "mean teacher")]
    assert not any(torch.allclose(ensemble.logits(image), part) for part in parts)
    for run, method, message in [
        (tmp_path, None, "not a finished training"),
        (sweep, "expert", "no method 'expert': there are synthetic-only, guided, .*mean-teacher"),
        (sweep, "jointtraining", r"no method 'jointtraining': did you mean joint-training\?"),
        (
            sweep,
            "ensemble",
            "ensemble was not trained there; trained are synthetic-only, guided",
        ),
        (sweep, "student", "tune-test: student was not trained there"),
        (job.directory, "student", "not a sweep, so it has no row 'student'"),
    ]:
        with pytest.raises(UserError, match=message):
            raydelta.load(run, method)


@pytest.mark.parametrize("method", ["guided", "mean-teacher", "ensemble-untranslated", "synthetic-only"])
def test_inference_needs_no_data_set(trained: dict[str, Any], travelled: Path, method: str) -> None:
    image = photograph(50, 80)
    moved = raydelta.load(travelled / "tune-travels", method)
    home = raydelta.load(trained["translator"].directory.parent / "tune-travels", method)
    assert (moved.name, moved.classes) == (home.name, CAMVID11.classes)
    assert (moved(image).ids == home(image).ids).all()
    stage = read_stage(trained["mean teacher"].directory)
    assert stage is not None
    assert (stage["size"], stage["normalisation"]) == ([WIDTH, HEIGHT], [-1, 1])
    assert stage["taxonomy"]["palette"] == [list(colour) for colour in CAMVID11.palette]


def test_a_stage_of_an_older_version_is_read_with_its_data_set(trained: dict[str, Any], travelled: Path) -> None:
    home = trained["translator"].directory.parent
    for runs in (home, travelled):
        for path in runs.glob("*/stage.json"):
            tree = json.loads(path.read_text())
            old = {
                key: value for key, value in tree.items() if key not in ("taxonomy", "size", "normalisation", "data")
            }
            (runs / f"old-{path.parent.name}").mkdir(exist_ok=True)
            (runs / f"old-{path.parent.name}" / "stage.json").write_text(
                json.dumps(old | {"expert": old["expert"] and f"old-{old['expert']}"})
            )
            shutil.copytree(
                path.parent / "checkpoint", runs / f"old-{path.parent.name}" / "checkpoint", dirs_exist_ok=True
            )
    name = f"old-{trained['mean teacher'].directory.name}"
    assert raydelta.load(home / name).classes == CAMVID11.classes
    with pytest.raises(UserError, match="/nowhere/simulated"):
        raydelta.load(travelled / name)
    for path in home.glob("old-*"):
        shutil.rmtree(path)


def test_methods_that_lead_elsewhere_are_refused(travelled: Path) -> None:
    path = travelled / "tune-travels" / "methods.json"
    path.write_text(json.dumps({"guided": {"stage": "../elsewhere", "members": []}}))
    with pytest.raises(UserError, match="does not lie beside"):
        raydelta.load(path.parent)
    path.write_text("[1]")
    with pytest.raises(UserError, match="damaged"):
        raydelta.load(path.parent)


def test_latest_is_the_newest_sweep_or_training_of_its_own(travelled: Path, tmp_path: Path) -> None:
    assert resolve_run("latest", travelled) == travelled / "tune-travels"
    alone = travelled / "student-alone"
    alone.mkdir()
    (alone / "stage.json").write_text("{}")
    os.utime(alone / "stage.json", (time.time() + 60,) * 2)
    assert resolve_run("latest", travelled) == alone
    with pytest.raises(UserError, match="runs/x: no such run"):
        resolve_run("runs/x", travelled)
    with pytest.raises(UserError, match="no finished sweep or training there"):
        resolve_run("latest", tmp_path / "empty")


def recommending(method: str, stage: str) -> Row:
    return Row(
        method=method,
        labels_train=4,
        labels_val=2,
        seed=0,
        real="street",
        domain="real",
        split="test",
        start="expert",
        pretraining=None,
        device_hours=1.0,
        miou=30.0,
        per_class={},
        images=1,
        stage=stage,
        validation=40.0,
    )


def test_a_sweep_stands_for_the_row_that_its_table_recommends(trained: dict[str, Any], travelled: Path) -> None:
    sweep = travelled / "tune-travels"
    for method, stage in [
        ("mean teacher", trained["mean teacher"].directory.name),
        ("ensemble, untranslated", "ensemble-without-a-stage"),
        ("joint training", "../elsewhere"),
    ]:
        write_table(sweep, [recommending(method, stage)])
        assert raydelta.load(sweep).method == method
        assert raydelta.load(sweep, "guided").method == "guided"
    (sweep / "table.json").write_text('{"rows": [1]}')
    with pytest.raises(UserError, match="or name a --method"):
        raydelta.load(sweep)
    assert raydelta.load(sweep, "guided").method == "guided"


@pytest.fixture(scope="module")
def model(trained: dict[str, Any]) -> LoadedModel:
    return raydelta.load(trained["translator"].directory)


def test_load_takes_a_photograph_in_any_form(model: Any, tmp_path: Path) -> None:
    image = photograph(50, 80)
    Image.fromarray(image).save(tmp_path / "photo.png")
    expected = model.network(torch.from_numpy(image)[None])[0].numpy()
    grey = np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, 2)
    for given in [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(image), image]:
        masks = model(given)
        assert isinstance(masks.ids, np.ndarray) and masks.ids.dtype == np.uint8
        assert (masks.ids == expected).mean() > 0.999
        assert masks.classes == CAMVID11.classes
    assert (model(Image.fromarray(image).convert("RGBA")).ids == model(image).ids).all()
    assert (model(Image.fromarray(image).convert("L")).ids == model(grey).ids).all()
    tensor = torch.from_numpy(image)
    for given in (tensor, tensor.permute(2, 0, 1)):
        masks = model(given)
        assert isinstance(masks.ids, torch.Tensor) and (masks.ids.numpy() == model(image).ids).all()


def test_load_takes_a_batch_and_a_list(model: Any, tmp_path: Path) -> None:
    images = np.stack([photograph(40, 60, seed) for seed in range(3)])
    alone = np.stack([model(image).ids for image in images])
    assert (model(images).ids == alone).mean() > 0.999
    assert model(torch.from_numpy(images).permute(0, 3, 1, 2)).ids.shape == (3, 40, 60)
    different = model([images[0], Image.fromarray(photograph(20, 33))])
    assert [masks.ids.shape for masks in different] == [(40, 60), (20, 33)]
    model(images).save(tmp_path / "of.png", "ids")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of-0.png", "of-1.png", "of-2.png"]
    assert (np.asarray(Image.open(tmp_path / "of-1.png")) == model(images).ids[1]).all()


def test_masks_are_drawn_and_saved(model: Any, tmp_path: Path) -> None:
    image = photograph(50, 80)
    masks = model(image)
    assert (masks.colour() == np.array(CAMVID11.palette, dtype=np.uint8)[masks.ids]).all()
    assert (masks.overlay() == overlay(image, masks.ids, CAMVID11)).all()
    masks.save(tmp_path / "overlay.png")
    assert (np.asarray(Image.open(tmp_path / "overlay.png")) == masks.overlay()).all()
    masks.save(str(tmp_path / "small.jpg"))
    for path, kind, message in [("a.jpg", "ids", "written as .png"), ("a.png", "mask", "choose from ids, colour")]:
        with pytest.raises(UserError, match=message):
            masks.save(tmp_path / path, kind)
    with pytest.raises(UserError, match=r"no such pictures; take \.png"):
        masks.save(tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.png", "small.jpg"]


def test_load_says_what_is_wrong_with_an_array(model: Any) -> None:
    image = photograph(20, 30)
    for given, message in [
        (torch.rand(20, 30, 3), r"type float32; .* if 0 to 1, \(255 \* images\)\.round\(\)\.to\(torch\.uint8\)"),
        (image.astype(float), r"type float64; .*\.astype\('uint8'\)"),
        (image.astype(np.int64), r"type int64; expected uint8"),
        (image[..., 0], r"shape \(20, 30\)"),
        (image[..., :1], r"repeat the grey channel three times"),
        (np.concatenate([image, image[..., :1]], 2), r"images\[\.\.\., :3\]"),
        (image.transpose(2, 0, 1), r"shape \(3, 20, 30\)"),
        (image[:0], r"shape \(0, 30, 3\)"),
        (Image.fromarray(np.zeros((9, 9), dtype=np.uint16)), "expected 8 bits per channel"),
        ("missing.png", "missing.png"),
    ]:
        with pytest.raises(UserError, match=message):
            model(given)
