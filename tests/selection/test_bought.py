"""Labels that were bought come back: into the data set, and into the next round."""

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydelta.cli import app
from raydelta.config import load_config, override
from raydelta.data.checking import check
from raydelta.data.decoding import decode_label
from raydelta.data.labels import cells_mask
from raydelta.data.shards import list_ids, read_rows
from raydelta.data.simulator.scene import simulate
from raydelta.errors import UserError
from raydelta.selection.bought import import_labels, read_order
from raydelta.selection.select import Selection, choose, list_pool, select
from raydelta.training.assemble import load_labelled
from raydelta.training.job import Job, label_ids, make_job, read_job
from raydelta.training.run import train_here
from tests.sets import REAL, REAL_NAMES, STEPS, SYNTHETIC, every_label, write_set
from tests.tiny import TINY

BOUGHT = {f"real-{index:02d}" for index in range(8)}


def partly(name: str, mask: np.ndarray) -> bytes | None:
    return every_label(name, mask) if name in BOUGHT else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bought")


@pytest.fixture(scope="module")
def translator(folder: Path) -> Job:
    """Most photographs of its set have no label."""
    synthetic = write_set(folder / "simulated", "synthetic", [(f"s{index}", "all") for index in range(SYNTHETIC)])
    real = write_set(folder / "street", "street", REAL_NAMES, partly)
    manifest = json.loads((folder / "street" / "manifest.json").read_text())
    del manifest["splits"]["test"]  # its shard is not there
    (folder / "street" / "manifest.json").write_text(json.dumps(manifest))
    config = override(load_config(overrides=TINY | STEPS), {"data.synthetic": synthetic, "data.real": real})
    expert = make_job("expert", config, folder / "my runs")
    train_here(expert)
    job = make_job("translator", config, folder / "my runs", expert.directory)
    train_here(job)
    return job


@pytest.fixture(scope="module")
def whole(ray_session: None, translator: Job, folder: Path) -> Selection:
    return select(translator.directory, 3, "stride", out=folder / "whole")


@pytest.fixture(scope="module")
def cells(ray_session: None, translator: Job, folder: Path) -> Selection:
    return select(translator.directory, 11, "random-cells", out=folder / "cells", window=1)


def masks_in(uri: str) -> dict[str, np.ndarray | None]:
    rows = read_rows(uri, "train", columns=["id", "label"]).to_pylist()
    return {row["id"]: None if row["label"] is None else decode_label(row["label"]) for row in rows}


def job_of(command: str) -> Job:
    words = shlex.split(command)
    options = [word for word in words if "=" in word] + [f"data.real={words[words.index('--real') + 1]}"]
    config = load_config(file=words[words.index("--config") + 1], overrides=options)
    runs = Path(words[words.index("--runs") + 1])
    return make_job("translator", config, runs, make_job("expert", config, runs).directory)


def test_images_come_back_and_the_next_round_starts_with_the_printed_line(
    whole: Selection, translator: Job, folder: Path
) -> None:
    bought = import_labels(whole.directory, whole.directory / "cvat-drafts.zip", folder / "next")
    assert bought.labels == 3
    new = {choice.id for choice in whole.choices}
    before, after = masks_in(translator.config.data.real), masks_in(bought.target)
    for name, label in after.items():
        old = before[name]
        if name in new:
            assert label is not None
            assert label.max() < 11
        else:
            assert (label is None) == (old is None)
            assert label is None or (label == old).all()
    report = check(bought.target)
    assert not report.problems
    job = job_of(bought.command)
    train, validation = label_ids(translator)
    assert label_ids(job) == ([*train, *(choice.id for choice in whole.choices)], validation)
    assert job.expert == translator.expert
    train_here(job)
    assert not new & {sample.id for sample in list_pool(job)}


def test_cells_come_back_and_only_they_are_trained_on(cells: Selection, folder: Path) -> None:
    bought = import_labels(cells.directory, accept(cells.directory), folder / "next cells")
    job = job_of(bought.command)
    images, _ = load_labelled(job)
    assert images is not None
    assert images.labels is not None
    chosen = {choice.id for choice in cells.choices}
    pixels = sum((images.labels[images.ids.index(name)] != 255).sum() for name in chosen)
    assert pixels == 11 * 16 * 16
    train_here(job)
    assert job.done


def annotate(directory: Path, export: Path) -> Path:
    """A person who knows every pixel: a PNG of class ids for each image that is listed."""
    for file in (directory / "images.txt").read_text().split():
        name = Path(file).stem
        _, mask = simulate(int(name.removeprefix("real-")), look="street", width=64, height=32)
        export.mkdir(exist_ok=True)
        Image.fromarray(mask).save(export / f"{name}.png")
    return export


def test_two_rounds_over_the_command_line(
    ray_session: None, translator: Job, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Choose, label, bring back, train, choose again: every command but the labelling is printed by the one before."""

    def run(line: str) -> dict[str, str]:
        app(shlex.split(line)[1:], standalone_mode=False)
        lines = capsys.readouterr().out.splitlines()
        return {text[:13].strip(): text[13:] for text in lines} | {"": lines[-1]}

    expected, validation = label_ids(translator)
    directory = translator.directory
    for turn in range(2):
        asked = run(f"raydelta select '{directory}' --count 3 --strategy stride")
        selection = directory / "selection-stride"
        chosen = (selection / "images.txt").read_text().split()
        expected = [*expected, *(Path(file).stem for file in chosen)]
        export = annotate(selection, folder / f"labelled in round {turn}")
        names = {"EXPORT": shlex.quote(str(export)), "NEW_DATA_SET": shlex.quote(str(folder / f"round {turn}"))}
        line = " ".join(names.get(word, word) for word in asked["labels back"].split(" "))
        bought = run(line)
        assert bought["new labels"] == "3"
        directory = Path(run(bought["then train"])[""])
        job = read_job(directory)
        assert label_ids(job) == (expected, validation)
        assert job.expert == translator.expert, "the expert is not trained again"
    assert len(set(expected)) == len(expected) == 4 + 3 + 3


def accept(directory: Path) -> Path:
    """What Label Studio exports when a person has accepted every draft."""
    tasks = json.loads((directory / "label-studio.json").read_text())
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    (directory / "done.json").write_text(json.dumps(tasks))
    return directory / "done.json"


def painted(selection: Selection, folder: Path, boxes: bool, value: int = 3) -> Path:
    """An export that fills every image whole, or with ``boxes`` all but the cells that were asked for."""
    order = read_order(selection.directory)
    folder.mkdir()
    for name in order.images:
        mask = np.full((32, 64), value, np.uint8)
        if boxes:
            assert order.cells is not None
            for cell in order.cells.images[name]:
                row, column = divmod(cell, 4)
                mask[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


def test_labels_beyond_the_cells_are_left_out_with_a_warning(cells: Selection, translator: Job, folder: Path) -> None:
    export = painted(cells, folder / "all over", boxes=False)
    with pytest.warns(UserWarning, match="labels outside the cells that were asked for are left out"):
        bought = import_labels(cells.directory, export, folder / "cut")
    before, after = masks_in(translator.config.data.real), masks_in(bought.target)
    order = read_order(cells.directory)
    assert order.cells is not None
    for name, chosen in order.cells.images.items():
        wanted, old, new = cells_mask(chosen, (4, 2), (64, 32)), before[name], after[name]
        assert new is not None
        assert (new[wanted] == 3).all()
        assert (new[~wanted] == (255 if old is None else old[~wanted])).all(), "what was there before stays"


def test_a_file_that_fills_other_cells_than_asked_is_refused(cells: Selection, folder: Path) -> None:
    export = painted(cells, folder / "elsewhere", boxes=True)
    with pytest.raises(UserError, match="nothing is labelled in the cells that were asked for in real-"):
        import_labels(cells.directory, export, folder / "refused")
    assert not list(folder.glob("refused*")), "nothing is half written"


def test_what_is_not_labelled_yet_is_named(whole: Selection, folder: Path) -> None:
    export = painted(whole, folder / "two of three", boxes=False)
    last = whole.choices[-1].id
    (export / f"{last}.png").unlink()
    with pytest.raises(UserError, match=rf"1 of the 3 images have no label: {last}; label them all"):
        import_labels(whole.directory, export, folder / "refused")
    assert not list(folder.glob("refused*"))


def test_images_that_have_vanished_from_the_data_set_are_named(whole: Selection, folder: Path) -> None:
    gone = whole.choices[0].id
    left = write_set(folder / "fewer", "street", [pair for pair in REAL_NAMES if pair[0] != gone], partly)
    with pytest.raises(UserError, match=rf"1 of the 3 chosen images are not there any more: {gone}; name the data set"):
        import_labels(whole.directory, whole.directory / "cvat-drafts.zip", folder / "refused", data=left)
    assert not list(folder.glob("refused*"))


def test_a_selection_goes_on_when_images_of_its_pool_have_vanished(
    ray_session: None, translator: Job, folder: Path
) -> None:
    """Scores are kept by what a data set holds, so none of an image that is gone is used."""
    choose(translator, 2, "entropy")
    real = Path(translator.config.data.real)
    shutil.move(real, folder / "moved away")
    try:
        write_set(real, "street", REAL_NAMES[:15], partly)
        choices, _ = choose(translator, 7, "entropy", window=1)
        assert {choice.id for choice in choices} <= {name for name, _ in REAL_NAMES[:15]}
    finally:
        shutil.rmtree(real)
        shutil.move(folder / "moved away", real)


def test_what_is_no_selection_or_a_damaged_one_is_refused(whole: Selection, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished selection"):
        import_labels(tmp_path, tmp_path, folder / "refused")
    (tmp_path / "selection.json").write_text("{")
    with pytest.raises(UserError, match="damaged; run the same raydelta select again"):
        read_order(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        import_labels(whole.directory, whole.directory / "cvat-drafts.zip", whole.directory)


def test_an_import_that_was_killed_is_done_by_the_same_command(whole: Selection, folder: Path) -> None:
    """A killed write leaves TARGET.partial: no data set, and no obstacle."""
    target = folder / "killed"
    (folder / "killed.partial").mkdir()
    (folder / "killed.partial" / "train-00000.parquet.4711").write_bytes(b"half a shard")
    with zipfile.ZipFile(whole.directory / "cvat-drafts.zip") as archive:
        archive.extractall(folder / "export")
    import_labels(whole.directory, folder / "export", target)
    assert len(list_ids(target, "train")) == REAL
    assert not (folder / "killed.partial").exists()
