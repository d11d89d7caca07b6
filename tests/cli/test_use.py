import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raydelta.cli.main import app
from raydelta.cli.use import _print_predicted
from raydelta.deploy.predict import Predicted
from raydelta.storage.bucket import fetch, open_copy, publish


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_run_in_a_bucket_is_used_from_machines_that_have_not_trained_it(
    ray_session: None, trained: dict[str, Any], s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{s3}/used"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    copy = open_copy(address)
    for kind in ("expert", "translator"):
        shutil.copytree(trained[kind].directory, copy / trained[kind].directory.name)
        publish(copy / trained[kind].directory.name)
    name = trained["translator"].directory.name
    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)).save(photograph)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run("predict", f"{address}/{name}", photograph, "--out", tmp_path / "masks")["images"] == 1
        (mask,) = (tmp_path / "masks").rglob("*.png")
        assert Image.open(mask).size == (64, 32)
        assert run("predict", "latest", photograph, "--runs", address, "--out", tmp_path / "again")["images"] == 1
        assert run("export", f"{address}/{name}", "--out", tmp_path / "exported", "--images", photograph)["checks"]
        chosen = run("select", f"{address}/{name}", "--count", 2, "--trust")
    assert {Path(chosen["directory"]).name} == {"selection-random"}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    published = open_copy(address) / name / "selection-random"
    fetch(published)
    assert (published / "selection.csv").read_text() == (Path(chosen["directory"]) / "selection.csv").read_text()


def test_what_a_strangers_model_says_of_itself_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _print_predicted(Predicted("\x1b[2J", "\x1b]0;owned", None, 0, 0, [("\x1b[1m.png", "no image")], []), None)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and r"\x1b[2J" in printed
