import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

import raydelta
from benchmarks.faults_here import forked
from raydelta import cli
from raydelta.compute.device import Place
from raydelta.config import override, save_config
from raydelta.data.taxonomy import CAMVID11
from raydelta.deploy import export
from raydelta.deploy.card import find_rows
from raydelta.deploy.network import Chain, Deployed, build, read_network
from raydelta.deploy.preprocessor import Preprocessor, choose_preprocessor
from raydelta.errors import UserError
from raydelta.networks.own_expert import OwnExpert
from raydelta.results.evaluate import evaluate_job
from raydelta.results.table import recommended_row, write_table
from raydelta.training.job import make_job, record_methods
from raydelta.training.run import train_here
from raydelta.training.trained import load_model
from tests.deploy.test_predict import photograph


@pytest.fixture(scope="module")
def exported(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = trained["translator"]
    write_table(job.directory, evaluate_job("guided", job))
    out = tmp_path_factory.mktemp("export") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raydelta", "export", str(job.directory), "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return out


def test_everything_exported_says_the_same_for_any_size(exported: Path, trained: dict[str, Any]) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "model.onnx",
        "model.pt2",
        "model.safetensors",
        "config.yaml",
        "README.md",
    }
    model, again = read_network(trained["translator"].directory), read_network(exported)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    program = torch.export.load(exported / "model.pt2").module()
    for count, height, width in [(1, 32, 64), (2, 50, 33), (3, 120, 90), (1, 40, 500), (1, 300, 9)]:
        images = torch.from_numpy(np.stack([photograph(height, width, seed) for seed in range(count)]))
        with torch.inference_mode():
            ids, logits = model(images), model.logits(images)
            assert (again(images) == ids).all()
            found = [program(images), [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]]
        for other_ids, other_logits in found:
            assert other_ids.dtype == torch.uint8 and other_ids.shape == (count, height, width)
            assert (other_ids == ids).float().mean() >= export.REQUIRED
            assert torch.allclose(other_logits, logits, atol=1e-3)


def test_the_network_of_the_default_job_is_exported(trained: dict[str, Any], tmp_path: Path) -> None:
    config = override(trained["expert"].config, {"segmenter.architecture": "lean", "expert.steps": 2})
    job = make_job("expert", config, tmp_path / "runs")
    train_here(job)
    done = export.export(job.directory, tmp_path / "model")
    assert {check.model for check in done.checks} == {"model.onnx", "model.pt2", "model.safetensors"}


def test_an_export_that_is_killed_leaves_nothing_under_its_name(trained: dict[str, Any], tmp_path: Path) -> None:
    run, out = trained["expert"].directory, tmp_path / "model"
    child = forked(lambda: export.export(run, out))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".model.*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not out.exists()
    export.export(run, out)
    assert {path.name for path in out.iterdir()} >= {"model.onnx", "model.pt2", "config.yaml", "README.md"}


@pytest.mark.parametrize("what", [os.mkfifo, lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40)])
def test_exported_weights_that_never_end_are_refused(
    what: Callable[[Path], None], exported: Path, tmp_path: Path
) -> None:
    shutil.copy(exported / "config.yaml", tmp_path)
    what(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: (a pipe or device|larger than the memory)"):
        read_network(tmp_path)


def test_a_row_of_a_sweep_is_exported_an_ensemble_too(trained: dict[str, Any], tmp_path: Path) -> None:
    sweep = trained["translator"].directory.parent / "tune-rows"
    sweep.mkdir()
    save_config(trained["translator"].config, sweep / "best.yaml")
    done = export.export(sweep, tmp_path / "model", "ensemble-untranslated")
    assert all(check.agreement >= export.REQUIRED and check.deviation < 1e-3 for check in done.checks)
    assert raydelta.load(tmp_path / "model").method == done.method == "ensemble, untranslated"
    assert len(raydelta.load(tmp_path / "model").network.chains) == 2
    assert "*ensemble, untranslated*" in (tmp_path / "model" / "README.md").read_text()


def test_card_says_what_it_was_made_of(exported: Path, trained: dict[str, Any]) -> None:
    card = (exported / "README.md").read_text()
    row = find_rows(trained["translator"])[0]
    assert f"| street | {row.split} | {row.images} | {row.miou:.1f} |" in card
    assert "Labelled photographs: 4 to train, 2 to validate" in card
    assert "| simulated | synthetic | train | 22 | 22 |" in card
    assert "| model.onnx | 64×32 |" in card and "| model.pt2 | 48×24 |" in card
    assert not find_rows(trained["joint training"])
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("raydelta", "image-segmentation")
    assert head["model-index"][0]["results"][0]["metrics"] == [{"type": "mean_iou", "value": round(row.miou / 100, 4)}]
    assert "On 8 photographs of the run's data set." in card


def test_programs_carry_the_class_names(exported: Path) -> None:
    metadata = onnxruntime.InferenceSession(exported / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CAMVID11.classes)
    assert json.loads(metadata["palette"]) == [list(colour) for colour in CAMVID11.palette]
    assert metadata["method"] == "guided"
    files = {"classes.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=files)
    assert json.loads(files["classes.json"]) == list(CAMVID11.classes)


def test_a_run_without_its_data_is_checked_on_drawn_or_given_photographs(
    trained: dict[str, Any], travelled: Path, tmp_path: Path
) -> None:
    run = travelled / trained["joint training"].directory.name
    done = export.export(run, tmp_path / "drawn")
    assert done.images == "8 drawn street scenes, as the run's photographs do not lie on this machine"
    card = (tmp_path / "drawn" / "README.md").read_text()
    assert f"On {done.images}." in card and "| simulated | synthetic | train | 22 | 22 |" in card
    Image.fromarray(photograph(40, 70)).save(tmp_path / "one.jpg")
    done = export.export(run, tmp_path / "given", images=[str(tmp_path / "one.jpg")])
    assert done.images == "1 given photographs" and done.checks[0].width == 70


def test_load_refuses_weights_that_do_not_fit(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        raydelta.load(tmp_path / "copy")
    (tmp_path / "copy" / "config.yaml").write_text("run: x\ncode: y\n")
    with pytest.raises(UserError, match="unknown field 'code'"):
        raydelta.load(tmp_path / "copy")


def test_what_disagrees_is_not_written(exported: Path) -> None:
    model = read_network(exported)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-1.5)
    images = torch.from_numpy(photograph(32, 64))[None]
    with pytest.raises(UserError, match=r"model\.onnx gives the ids of the original .* nothing was written"):
        export._check(export.Segmenting(model), export.MODEL, exported, images)


def test_refusals(exported: Path, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="exists already"):
        export.export(trained["translator"].directory, exported)
    with pytest.raises(UserError, match="not a finished training"):
        export.export(exported, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'raydelta\[export\]'"):
        export.export(trained["translator"].directory, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_import_stays_light() -> None:
    code = "import sys, raydelta; assert not {'torch', 'ray'} & sys.modules.keys(); raydelta.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "module 'raydelta' has no attribute 'nothing'" in done.stderr


@pytest.fixture(scope="module", params=["translator", "colours matched"])
def preprocessor(
    request: pytest.FixtureRequest, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A job and the folder of what goes in front of its expert."""
    out = tmp_path_factory.mktemp("preprocessor") / "front"
    done = export.export(trained[request.param].directory, out, preprocessor=True)
    return trained[request.param], out, done


def test_a_preprocessor_gives_what_the_expert_sees_for_any_size(preprocessor: Any, trained: dict[str, Any]) -> None:
    job, out, done = preprocessor
    assert {path.name for path in out.iterdir()} == {"preprocessor.onnx", "preprocessor.pt2", "README.md"}
    assert {check.model for check in done.checks} == {"preprocessor.onnx", "preprocessor.pt2"}
    session = onnxruntime.InferenceSession(out / "preprocessor.onnx")
    program = torch.export.load(out / "preprocessor.pt2").module()
    model, expert = read_network(job.directory), build(trained["expert"])
    for count, height, width in [(1, 32, 64), (2, 50, 33), (1, 300, 9)]:
        images = torch.from_numpy(np.stack([photograph(height, width, seed) for seed in range(count)]))
        with torch.inference_mode():
            prepared = model.prepare(images)
            translated = load_model(job, Place(torch.device("cpu"))).translate(prepared)
            logits = model.networks(prepared)
        found = [program(images), [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]]
        for rgb, normalised in found:
            assert rgb.dtype == torch.uint8
            torch.testing.assert_close(normalised, translated, atol=1e-3, rtol=0)
            assert (rgb.permute(0, 3, 1, 2) - (translated + 1) * 127.5).abs().max() < 0.75
            with torch.inference_mode():
                torch.testing.assert_close(expert.networks(normalised), logits, atol=1e-2, rtol=1e-2)
    card = (out / "README.md").read_text()
    assert "rgb, normalised = session.run" in card and "| preprocessor.onnx | 64×32 |" in card


def test_a_preprocessor_is_normalised_as_the_users_expert_expects(trained: dict[str, Any]) -> None:
    model = build(trained["translator"])
    (chain,) = model.chains
    own = OwnExpert(chain.segmenter, (0.1, 0.2, 0.3), (0.5, 0.25, 0.2), [[0]])
    images = torch.from_numpy(photograph(32, 64))[None]
    with torch.inference_mode():
        _, plain = Preprocessor(model)(images)
        _, normalised = Preprocessor(Deployed(model.config, [Chain(own, chain.generator)]))(images)
    scales = torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(normalised * scales + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), plain / 2 + 0.5)


def test_a_row_with_nothing_in_front_has_no_preprocessor(trained: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"joint training has nothing in front of its segmenter; rows that have are guided"
    ):
        export.export(trained["joint training"].directory, tmp_path / "out", preprocessor=True)
    assert not list(tmp_path.iterdir())


def test_without_a_row_named_a_sweep_gives_its_guided_preprocessor(trained: dict[str, Any], tmp_path: Path) -> None:
    sweep = trained["translator"].directory.parent / "tune-fronts"
    sweep.mkdir()
    save_config(trained["translator"].config, sweep / "best.yaml")
    record_methods(sweep, trained["translator"].config, trained["expert"].directory)
    write_table(sweep, evaluate_job("joint training", trained["joint training"]))
    assert recommended_row(sweep) == "joint training"
    assert choose_preprocessor(sweep).directory == trained["translator"].directory
    assert choose_preprocessor(sweep, "colours-matched").directory == trained["colours matched"].directory
