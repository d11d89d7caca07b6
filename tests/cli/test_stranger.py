"""A stranger's path through the real command line: a folder of photographs in, a model and the next labels out.

Its siblings are the tests of each step: of import in test_cli.py, of the sweep in tests/tuning/test_tune.py, of
predict, export and select in test_use.py, of labels that come back in tests/selection/test_bought.py.
"""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from raydelta.data.shards import read_manifest
from raydelta.data.simulator.scene import simulate
from tests.cli.test_cli import run
from tests.tiny import TINY_ARGUMENTS

WIDTH, HEIGHT = 64, 32
TRAIN, LABELLED, TEST = 14, 6, 4
"""Of the labels two validate, by ``TINY``."""


def write_photographs(folder: Path) -> dict[str, np.ndarray]:
    """``images/SPLIT/`` and, for some of the images, ``labels/SPLIT/``; the truth of all by name."""
    truth = {}
    for number in range(TRAIN + TEST):
        split = "train" if number < TRAIN else "test"
        name = f"drive-{split}_{number:04d}"
        image, truth[name] = simulate(number, look="street", width=2 * WIDTH, height=2 * HEIGHT)
        for part, pixels, suffix in (("images", image, "jpg"), ("labels", truth[name], "png")):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
            if part == "images" or split == "test" or number < LABELLED:
                Image.fromarray(pixels).save(folder / part / split / f"{name}.{suffix}")
    return truth


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_a_folder_to_a_model_and_the_next_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    truth = write_photographs(tmp_path / "photographs")

    imported = run("data", "import", "photographs", "sets/photographs", "--allow-unlabelled", "--size", "64x32").stdout
    assert f"train: {TRAIN} images, {LABELLED} labelled" in imported

    space = [
        "trials=2",
        "scheduler=none",
        "table.methods=[guided, joint training]",
        "search.labels.budget={choice: [4]}",
    ]
    settings = [each for each in TINY_ARGUMENTS if not each.startswith("labels.budget")]
    tuned = run("tune", "--real", "sets/photographs", *space, *settings).stdout
    assert "recommended" in tuned and "runs/tune-laptop-photographs-" in tuned

    again = re.findall(r"^train again  raydelta (.+)$", tuned, re.MULTILINE)
    assert [command.split()[1] for command in again] in (["guided", "joint-training"], ["expert", "joint-training"])
    trained = sorted(path.name for path in (tmp_path / "runs").iterdir())
    for command in again:  # finished: it is found, not made
        assert Path(run(*shlex.split(command)).stdout.strip()).name in trained
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == trained

    photo = tmp_path / "photo.jpg"
    Image.fromarray(simulate(99, look="street", width=150, height=90)[0]).save(photo)
    assert f"written      {tmp_path / 'photo-overlay.png'}" in run("predict", "latest", photo).stdout
    done = json.loads(run("predict", "latest", photo, "--out", "masks", "--json").stdout)
    assert done["images"] == 1 and done["method"] in tuned
    ids = np.asarray(Image.open("masks/ids/photo.png"))
    assert ids.shape == (90, 150)

    assert "100.000% of the pixels as in torch" in run("export", "latest", "--out", "model", "--images", photo).stdout
    session = onnxruntime.InferenceSession("model/model.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert tuple(classes) == read_manifest("sets/photographs").taxonomy.classes
    (found,) = session.run(["ids"], {"images": np.asarray(Image.open(photo))[None]})
    assert (found[0] == ids).mean() > 0.999

    selected = json.loads(run("select", "latest", "--count", 2, "--out", "next", "--json").stdout)
    chosen = [choice["id"] for choice in selected["choices"]]
    assert len(set(chosen)) == 2
    for name in chosen:  # what a labelling tool would give back
        mask = Image.fromarray(truth[Path(name).name]).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
        (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        mask.save(tmp_path / "export" / f"{name}.png")
    back = run("data", "import-labels", "next", "export", "sets/photographs-2").stdout
    assert "new labels   2" in back
    command = shlex.split(re.search(r"then train   (.+)", back)[1])
    assert command[:3] == ["raydelta", "train", "translator"] and command[command.index("--real") + 1].endswith("-2")
    assert read_manifest("sets/photographs-2").splits["train"].labelled == LABELLED + 2
