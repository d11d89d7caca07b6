import csv
import inspect
import io
import json
import shlex
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from raydelta.cli.use import select as select_command
from raydelta.compute.device import Place
from raydelta.config import Config, LabelIds, load_config, override, save_config
from raydelta.data.labels import cells_mask
from raydelta.data.pixels import to_float
from raydelta.data.shards import read_rows
from raydelta.data.taxonomy import CAMVID11
from raydelta.data.writing import encode_label
from raydelta.errors import UserError
from raydelta.search_space import TRANSLATING
from raydelta.selection.bought import read_order
from raydelta.selection.files import bought_then
from raydelta.selection.rle import decode_mask
from raydelta.selection.scoring import Scorer, find_student, predict_pool
from raydelta.selection.select import (
    WINDOW,
    check_count,
    choose,
    default_grid,
    find_learner,
    list_pool,
    select,
)
from raydelta.training.assemble import load_labelled
from raydelta.training.job import Job, label_ids, make_job, read_job
from raydelta.training.run import train_here
from raydelta.training.trained import load_model
from tests.sets import (
    HEIGHT,
    REAL,
    REAL_NAMES,
    WIDTH,
    every_label,
    no_label,
    pixels_of,
    unused,
    write_set,
)

CLASSES = len(CAMVID11)


def changed(job: Job, **values: Any) -> Job:
    """An untrained job with other fields."""
    config = override(job.config, {key.replace("__", "."): value for key, value in values.items()})
    return make_job("translator", config, job.directory.parent, job.expert)


def test_images_are_chosen_and_written_for_the_tools(ray_session: None, translator: Job, tmp_path: Path) -> None:
    """No label that was not bought can be read here, and no test image."""
    selection = select(translator.directory, 4, out=tmp_path / "out")
    out = selection.directory
    with (out / "selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    ids = [row["id"] for row in rows]
    assert list(rows[0]) == ["rank", "id", "sequence"], "random choice has no score"
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert [choice.id for choice in selection.choices] == ids
    assert len({row["sequence"] for row in rows}) == 4, "the drives have five frames each, no more than a window"
    assert set(ids) <= unused(translator)
    assert all(row["sequence"] == dict(REAL_NAMES)[row["id"]] for row in rows)

    stored = {row["id"]: row["image"] for row in read_rows(translator.config.data.real, "train", ids).to_pylist()}
    files = (out / "images.txt").read_text().split()
    assert files == [f"{name}.jpg" for name in ids]
    assert all((out / "images" / f"{name}.jpg").read_bytes() == stored[name] for name in ids)
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert manifest[:2] == [{"version": "1.1"}, {"type": "images"}]
    assert manifest[2] == {"name": ids[0], "extension": ".jpg", "width": WIDTH, "height": HEIGHT}
    tasks = json.loads((out / "label-studio.json").read_text())
    assert [task["meta"]["id"] for task in tasks] == ids
    assert tasks[0]["data"]["image"].endswith(f"images/{ids[0]}.jpg")
    sheet = Image.open(out / "sheet.png")
    assert 3 * WIDTH < sheet.width < 4 * WIDTH, "random choice has no heat map: real, translated, prediction"
    assert sheet.height > 4 * HEIGHT

    train, validation = label_ids(translator)
    assert yaml.safe_load((out / "labels.yaml").read_text()) == {"train": [*train, *ids], "validation": validation}


def test_the_command_trains_with_the_old_labels_and_the_new_ones(
    ray_session: None, translator: Job, folder: Path, tmp_path: Path
) -> None:
    selection = select(translator.directory, 3, "random", out=tmp_path / "out")
    words = shlex.split(selection.command)
    assert words[:3] == ["raydelta", "train", "translator"]
    labelled = write_set(folder / "labelled now", "street", REAL_NAMES)
    overrides = [word for word in words if "=" in word] + [f"data.real={labelled}"]
    config = load_config(file=words[words.index("--config") + 1], overrides=overrides)
    job = make_job("translator", config, Path(words[words.index("--runs") + 1]), translator.expert)
    train, validation = label_ids(translator)
    new = [choice.id for choice in selection.choices]
    assert label_ids(job) == ([*train, *new], validation)
    train_here(job)
    trained = read_job(job.directory)
    assert label_ids(trained) == ([*train, *new], validation)
    assert {sample.id for sample in list_pool(trained)} == unused(translator) - set(new), (
        "what is bought is not proposed"
    )


def test_cells_are_chosen_with_their_boxes(ray_session: None, translator: Job, tmp_path: Path) -> None:
    selection = select(translator.directory, 20, "entropy", out=tmp_path, grid=(4, 2), window=1)
    with (tmp_path / "selection.csv").open() as file:
        rows = list(csv.DictReader(file))
    boxes = [tuple(int(row[side]) for side in ("left", "top", "right", "bottom")) for row in rows]
    assert set(boxes) <= {
        (16 * column, 16 * row, 16 * column + 16, 16 * row + 16) for column in range(4) for row in (0, 1)
    }
    assert len({(row["id"], box) for row, box in zip(rows, boxes, strict=True)}) == 20
    assert {row["id"] for row in rows} <= unused(translator)
    scores = [choice.score for choice in selection.choices]
    assert scores == sorted(scores, reverse=True)
    tasks = json.loads((tmp_path / "label-studio.json").read_text())
    assert sum(len(task["meta"]["boxes"]) for task in tasks) == 20
    labels = yaml.safe_load((tmp_path / "labels.yaml").read_text())
    listed = labels["train"]
    assert len(listed) == len(set(listed)), "an image counts once, however many cells"
    assert labels["cells"]["grid"] == [4, 2]
    bought = {(name, cell) for name, cells in labels["cells"]["images"].items() for cell in cells}
    assert bought == {(choice.id, choice.cell) for choice in selection.choices}
    assert Image.open(tmp_path / "sheet.png").width > 4 * WIDTH


def test_only_the_wanted_cells_are_bright_and_have_a_draft(ray_session: None, translator: Job, tmp_path: Path) -> None:
    selection = select(translator.directory, 12, "ripu-cells", out=tmp_path)
    size = (WIDTH, HEIGHT)
    predicted = predict_pool(translator, [selection.choices[0].id])[selection.choices[0].id]
    stored = read_rows(translator.config.data.real, "train", [selection.choices[0].id])["image"][0].as_py()
    original = np.asarray(Image.open(io.BytesIO(stored))).astype(int)
    cells = [choice.cell for choice in selection.choices if choice.id == selection.choices[0].id]
    wanted = cells_mask(cells, (4, 2), size)
    name = selection.choices[0].id
    written = np.asarray(Image.open(tmp_path / "images" / f"{name}.jpg")).astype(int)
    assert np.abs(written - original)[wanted].mean() < 4
    assert written[~wanted].mean() < original[~wanted].mean() / 3
    (task,) = [each for each in json.loads((tmp_path / "label-studio.json").read_text()) if each["meta"]["id"] == name]
    drafted = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for result in task["predictions"][0]["result"]:
        painted = decode_mask(result["value"]["rle"], HEIGHT, WIDTH)
        assert (predicted[painted] == CAMVID11.classes.index(result["value"]["brushlabels"][0])).all()
        drafted |= painted
    assert (drafted == wanted).all()
    summary = json.loads((tmp_path / "selection.json").read_text())
    assert summary["price"]["pixels"] == 12 * 16 * 16
    assert summary["price"]["clicks"] == selection.price.clicks > 0


def test_cells_that_were_bought_are_not_proposed_again_but_the_others_of_the_image_are(translator: Job) -> None:
    train, _ = label_ids(translator)
    new = sorted(unused(translator))[0]
    ids = {"train": [*train, new], "cells": {"grid": [4, 2], "images": {new: [0, 1, 2]}}}
    job = changed(translator, labels__ids=ids, labels__budget=len(train) + 1)
    assert new not in {sample.id for sample in list_pool(job)}, "as a whole it counts as labelled"
    everything = 14 * 8 - 3
    with pytest.raises(UserError, match=f"ask for 1 to {everything}"):
        check_count(job, everything + 1, (4, 2))
    choices, _ = choose(job, everything, "random", grid=(4, 2), window=1)
    found = {(choice.id, choice.cell) for choice in choices}
    assert len(found) == everything
    assert {cell for name, cell in found if name == new} == {3, 4, 5, 6, 7}
    labels = bought_then(job, choices[:50], (4, 2))
    assert labels["cells"]["images"][new][:3] == [0, 1, 2]
    LabelIds(**labels)
    with pytest.raises(UserError, match="the run has bought cells of a 4x2 grid; take the same one"):
        check_count(job, 3, (8, 2))


def test_fewer_cells_than_classes_are_warned_about(translator: Job) -> None:
    with pytest.warns(UserWarning, match="count = 3 cells, but there are 11 classes"):
        check_count(translator, 3, (4, 2))


def moved(job: Job, name: str, real: str) -> Job:
    """The same finished run, as if its photographs were another data set."""
    directory = job.directory.with_name(name)
    shutil.copytree(job.directory, directory, ignore=shutil.ignore_patterns("scores", "selection-*"))
    config = directory / "checkpoint" / "config.yaml"
    config.write_text(config.read_text().replace(job.config.data.real, real))
    found = read_job(directory)
    assert found.config.data.real == real
    return found


def test_classes_that_no_label_will_show_are_named_where_labels_are_few(
    ray_session: None, translator: Job, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels that were bought show the sky alone, the prediction a road; other labels cannot be read."""
    bought = {name for names in label_ids(translator) for name in names}

    def sky(name: str, mask: np.ndarray) -> bytes:
        only = encode_label(np.where(mask == 0, mask, 255).astype(np.uint8))
        return only if name in bought else b"reading this label is a fault"

    def predict_road(job: Job, ids: list[str]) -> dict[str, np.ndarray]:
        return {name: np.full((HEIGHT, WIDTH), CAMVID11.find("road"), np.uint8) for name in ids}

    monkeypatch.setattr("raydelta.selection.select.predict_pool", predict_road)
    job = moved(translator, "translator-sky", write_set(folder / "sky", "street", REAL_NAMES, sky))
    missing = ", ".join(name for name in CAMVID11.classes if name not in ("sky", "road"))
    with pytest.warns(
        UserWarning, match=f"7 labels for 11 classes: by the present prediction none of them .* {missing}"
    ):
        select(job.directory, 3, out=tmp_path / "few")
    with warnings.catch_warnings(record=True) as quiet:
        warnings.simplefilter("always")
        select(job.directory, 7, out=tmp_path / "enough", window=1)
    assert not [each for each in quiet if "present prediction" in str(each.message)], "4 + 7 labels are 11"


def test_labels_whose_photographs_have_vanished_are_named_before_anything_is_labelled(
    translator: Job, folder: Path, tmp_path: Path
) -> None:
    gone = label_ids(translator)[0][0]
    rest = write_set(folder / "street without one", "street", [each for each in REAL_NAMES if each[0] != gone])
    job = moved(translator, "translator-gone", rest)
    with pytest.raises(UserError, match=rf"1 of the images that the run has labels of are not there any more: {gone};"):
        select(job.directory, 3, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_smaller_selection_leaves_no_image_of_the_larger_one_before(
    ray_session: None, translator: Job, tmp_path: Path
) -> None:
    own = tmp_path / "images" / "mine.jpg"
    own.parent.mkdir()
    own.write_bytes(b"not of a selection")
    select(translator.directory, 9, out=tmp_path, window=1)
    fewer = select(translator.directory, 2, out=tmp_path, window=1)
    left = {path.stem for path in (tmp_path / "images").iterdir()}
    assert left == {choice.id for choice in fewer.choices} | {"mine"}


def test_a_selection_that_was_killed_while_it_was_written_counts_as_none_until_it_is_done_again(
    ray_session: None, translator: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = select(translator.directory, 9, out=tmp_path, window=1)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("raydelta.selection.files.price_of", killed)
        with pytest.raises(KeyboardInterrupt):
            select(translator.directory, 2, out=tmp_path, window=1)
    with pytest.raises(UserError, match="no finished selection of raydelta select"):
        read_order(tmp_path)
    again = select(translator.directory, 9, out=tmp_path, window=1)
    assert again.choices == before.choices
    assert read_order(tmp_path).images == tuple(choice.id for choice in before.choices)
    assert {path.stem for path in (tmp_path / "images").iterdir()} == {choice.id for choice in before.choices}


@pytest.mark.parametrize("name", ["typical", "committee", "combined", "ripu-cells"])
def test_every_way_can_choose_a_single_one(ray_session: None, translator: Job, name: str) -> None:
    ((choice,), _) = choose(translator, 1, name, grid=default_grid(translator, name))
    assert choice.id in unused(translator)


def test_a_stride_spreads_old_and_new_labels_over_the_drives_and_asks_no_network(translator: Job) -> None:
    choices, _ = choose(translator, 6, "stride")
    used = {name for names in label_ids(translator) for name in names} | {choice.id for choice in choices}
    counts = Counter(sequence for name, sequence in REAL_NAMES if name in used)
    assert sorted(counts.values()) == [3, 3, 3, 3]
    assert all(choice.score is None for choice in choices)


def test_a_committee_without_a_student_says_which_one_it_needs(translator: Job) -> None:
    with pytest.raises(
        UserError, match=r"there is none for .*a sweep with one of joint training, mean teacher, student"
    ):
        find_student(changed(translator, labels__budget=3))


def test_labels_that_were_not_bought_are_void_in_training(translator: Job, folder: Path) -> None:
    real = write_set(folder / "street cells", "street", REAL_NAMES)
    train, _ = label_ids(translator)
    ids = {"train": train, "cells": {"grid": [4, 2], "images": {train[0]: [0]}}}
    job = changed(translator, data__real=real, labels__ids=ids)
    bought, _ = load_labelled(job)
    assert bought is not None
    assert bought.labels is not None
    assert (bought.labels[0] != 255).sum() <= 16 * 16
    assert (bought.labels[0, :16, :16] != 255).any()
    assert (bought.labels[1] != 255).sum() > WIDTH * HEIGHT / 2
    oracle = make_job("oracle", job.config, job.directory.parent, job.expert)
    everything, _ = load_labelled(oracle)
    assert everything is not None
    assert everything.labels is not None
    assert (everything.labels[everything.ids.index(train[0])] != 255).sum() > 16 * 16


def test_coverage_does_not_tell_cells_apart(translator: Job) -> None:
    with pytest.raises(UserError, match="'coverage' compares whole images"):
        choose(translator, 3, "coverage", grid=(4, 2))


def test_more_than_the_pool_has_is_refused_with_the_numbers(translator: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"count = 15, but the pool has 14 photographs; ask for 1 to 14"):
        select(translator.directory, 15, out=tmp_path)
    with pytest.raises(UserError, match=r"count = 113, but the pool has 14 photographs with 8 cells each"):
        select(translator.directory, 113, grid=(4, 2), out=tmp_path)
    with pytest.raises(UserError, match="regions = 65x1: the images have 64x32 pixels"):
        select(translator.directory, 1, grid=(65, 1), out=tmp_path)
    with pytest.raises(UserError, match="strategy 'best' does not exist"):
        select(translator.directory, 1, "best", out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_command_line_has_the_same_window() -> None:
    assert inspect.signature(select_command).parameters["window"].default == WINDOW


def test_an_empty_pool_is_named(translator: Job) -> None:
    with pytest.raises(UserError, match="used the label of every photograph"):
        check_count(changed(translator, labels__budget=REAL - 2), 1, (1, 1))


def test_without_any_label_everything_is_the_pool(translator: Job, folder: Path) -> None:
    real = write_set(folder / "street none", "street", REAL_NAMES, no_label)
    job = changed(translator, data__real=real, guidance__weight=0)
    check_count(job, REAL, (1, 1))
    with pytest.raises(UserError, match=f"the pool has {REAL} photographs"):
        check_count(job, REAL + 1, (1, 1))


def test_what_no_label_teaches_is_refused(translator: Job, tmp_path: Path) -> None:
    assert translator.expert is not None
    with pytest.raises(UserError, match="is a finished expert, which no label teaches; choose with a translator or"):
        find_learner(translator.expert)
    with pytest.raises(UserError, match="not a finished training"):
        find_learner(tmp_path)


def test_a_sweep_leads_to_its_best_translator(translator: Job) -> None:
    sweep = translator.directory.parent / "tune-laptop-1"
    sweep.mkdir()
    save_config(translator.config, sweep / "best.yaml")
    assert find_learner(sweep) == translator
    assert find_learner(sweep, "joint-training").kind == "joint training"


def test_a_student_chooses_as_it_sees_and_is_trained_next(ray_session: None, translator: Job, tmp_path: Path) -> None:
    job = read_job(
        make_job("joint training", translator.config, translator.directory.parent, translator.expert).directory
    )
    batch = pixels_of(job)
    logits = load_model(job, Place(torch.device("cpu"))).predict(to_float(torch.from_numpy(batch["pixels"])))
    logs = logits.log_softmax(1)
    expected = -(logs.exp() * logs).sum(1).mean((1, 2)) / np.log(CLASSES)
    assert np.allclose(Scorer(job, "entropy", (1, 1))(batch)["scores"][:, 0], expected.detach(), atol=1e-5)
    theirs = Scorer(translator, "typical", (1, 1))(batch)["features"]
    own = Scorer(job, "typical", (1, 1))(batch)["features"]
    assert own.shape == theirs.shape and not np.allclose(own, theirs)

    found = select(job.directory, 2, "typical", out=tmp_path / "chosen", window=1)
    assert {choice.id for choice in found.choices} <= unused(job)
    assert found.command.startswith("raydelta train joint-training --runs") and "labels.budget=6" in found.command
    assert Image.open(tmp_path / "chosen" / "sheet.png").width < Image.open(sheet_of(translator, tmp_path)).width
    for strategy in TRANSLATING:
        with pytest.raises(
            UserError, match=f"'{strategy}' compares translations, and joint-training-.* is no translator"
        ):
            choose(job, 2, strategy)


def sheet_of(job: Job, folder: Path) -> Path:
    select(job.directory, 2, "typical", out=folder / "other", window=1)
    return folder / "other" / "sheet.png"


def test_ids_that_the_set_does_not_know_stop_a_training(translator: Job, tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("train: [real-00, elsewhere]")
    job = changed(translator, labels__ids=str(tmp_path / "labels.yaml"), labels__budget=2)
    with pytest.raises(UserError, match=r"labels\.ids: elsewhere \(1 of 2\): no such photographs"):
        train_here(job)


def test_a_training_on_labels_of_a_few_cells_is_finite_and_learns_them(
    translator: Job, folder: Path, tmp_path: Path
) -> None:
    """All but a sixteenth of every mask is void, as after ``--regions``; one image has no label pixel at all."""

    def one_cell(name: str, mask: np.ndarray) -> bytes | None:
        partly = np.full_like(mask, 255)
        if name != label_ids(translator)[0][0]:
            partly[: HEIGHT // 4, : WIDTH // 4] = mask[: HEIGHT // 4, : WIDTH // 4]
        return every_label(name, partly)

    real = write_set(folder / "street partly", "street", REAL_NAMES, one_cell)
    base: Config = override(translator.config, {"data.real": real, "student.steps": 20, "compute.report_every": 1})
    reports: dict[str, list[dict[str, Any]]] = {}
    for kind in ("translator", "fine-tuned"):
        job = make_job(kind, base, tmp_path, translator.expert)  # type: ignore[arg-type]
        reports[kind] = []
        train_here(job, reports[kind].append)
        assert job.done
    losses = [report["losses"]["cross_entropy"] for report in reports["fine-tuned"]]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(
        np.isfinite(report["losses"]["guidance"]) and report["losses"]["guidance"] > 0
        for report in reports["translator"]
    )
