import csv
import io
import json
import math
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from raydelta.compute.device import Place
from raydelta.data.streams import Images
from raydelta.data.taxonomy import BUILT_IN, IGNORE
from raydelta.results.row import Row
from raydelta.results.table import Summary, format_table, pretrained_note, read_table, spread_of, summarise, write_table
from raydelta.training.metrics import class_ious, confusion_matrix, mean_iou, subset_means

HERE = Place(torch.device("cpu"))


def predict_red(images: Tensor) -> Tensor:
    """Class = a tenth of the red level."""
    classes = ((images[:, 0] + 1) * 127.5 / 10).round().long()
    return torch.nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float()


def images_of(predicted: list, truth: list) -> Images:
    red = 10 * np.array(predicted, dtype=np.uint8)
    pixels = np.stack([red, red, red], axis=1)
    return Images(tuple(map(str, range(len(red)))), pixels, np.array(truth, dtype=np.uint8))


HAND = images_of(
    [[[0, 1, 1], [3, 3, 0]], [[1, 1, 0], [0, 0, 0]]], [[[0, 1, 0], [3, IGNORE, 0]], [[1, 0, 0], [IGNORE] * 3]]
)


def test_confusion_by_hand_rows_are_truth() -> None:
    confusion = confusion_matrix(predict_red, HAND, 4, HERE)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[3, 2, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_ious_by_hand_with_an_absent_class() -> None:
    ious = class_ious(confusion_matrix(predict_red, HAND, 4, HERE))
    assert ious == [pytest.approx(60.0), pytest.approx(50.0), None, pytest.approx(100.0)]
    assert mean_iou(ious) == pytest.approx(70.0)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    assert class_ious(np.array([[2, 1], [0, 0]])) == [pytest.approx(200 / 3), 0.0]


def test_nothing_at_all_has_no_mean() -> None:
    ious = class_ious(np.zeros((3, 3), dtype=np.int64))
    assert ious == [None] * 3
    assert math.isnan(mean_iou(ious))


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    truth = [[[0, IGNORE, 1], [IGNORE, 1, 0]]]
    results = [
        confusion_matrix(predict_red, images_of([[[0, any_class, 1], [any_class, 0, 0]]], truth), 4, HERE).tolist()
        for any_class in range(4)
    ]
    assert all(result == results[0] for result in results)
    assert sum(map(sum, results[0])) == 4


def test_the_batch_size_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 3, IGNORE], (7, 4, 6))
    images = images_of(rng.integers(0, 4, (7, 4, 6)), truth)
    results = [confusion_matrix(predict_red, images, 4, HERE, batch=batch) for batch in (1, 3, 7, 16)]
    assert all((result == results[0]).all() for result in results)
    assert results[0].sum() == (truth != IGNORE).sum()


def test_ranks_share_the_images_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "total", lambda self, value: value)
    images = images_of([[[index % 4]] for index in range(7)], [[[0]]] * 7)
    parts = [confusion_matrix(predict_red, images, 4, Place(torch.device("cpu"), rank, 3)) for rank in range(3)]
    assert (sum(parts) == confusion_matrix(predict_red, images, 4, HERE)).all()


def row(method: str = "guided", seed: int = 0, miou: float = 30.0, road: float | None = 50.0, **fields: object) -> Row:
    values = {"labels_train": 14, "labels_val": 8, "real": "street", "split": "test", "images": 20}
    values |= {"start": "scratch", "pretraining": None, "device_hours": 0.25} | fields
    return Row(method=method, seed=seed, miou=miou, per_class={"road": road, "sky, blue": None}, **values)


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [row(), row("unguided", labels_train=0, miou=12.345678901, road=None)]
    write_table(tmp_path, rows)
    assert read_table(tmp_path) == rows
    assert list(json.loads((tmp_path / "table.json").read_text())) == ["recommended", "summary", "rows"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.json"]


def test_a_table_of_an_older_version_names_the_domain_in_its_split(tmp_path: Path) -> None:
    write_table(tmp_path, [row("synthetic only", split="test"), row("synthetic only", domain="synthetic")])
    tree = json.loads((tmp_path / "table.json").read_text())
    for line in tree["rows"]:
        if line.pop("domain") == "synthetic":
            line["split"] = "synthetic test"
    (tmp_path / "table.json").write_text(json.dumps(tree))
    read = read_table(tmp_path)
    assert [(line.domain, line.split) for line in read] == [("real", "test"), ("synthetic", "test")]
    assert [line.images_of for line in read] == ["test", "synthetic test"]


def test_the_synthetic_split_is_another_line_of_the_table() -> None:
    rows = [row("synthetic only", miou=20.0), row("synthetic only", miou=60.0, domain="synthetic"), row(miou=30.0)]
    assert [line[1] for line in show(rows, with_classes=False)[-3:]] == ["test", "synthetic test", "test"]
    assert summary_of(rows, "guided").against == {"synthetic only": (10.0, None)}


def test_the_csv_has_one_column_per_class(tmp_path: Path) -> None:
    write_table(tmp_path, [row(), row("unguided", road=None)])
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    expected = [
        "method",
        "labels_train",
        "labels_val",
        "seed",
        "real",
        "domain",
        "split",
        "start",
        "pretraining",
        "device_hours",
    ]
    assert list(lines[0]) == [*expected, "miou", "validation", "images", "pixels", "clicks", "road", "sky, blue"]
    assert lines[0]["method"] == "guided"
    assert float(lines[0]["miou"]) == 30
    assert float(lines[0]["road"]) == 50
    assert lines[0]["sky, blue"] == lines[1]["road"] == ""


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    write_table(tmp_path, [])
    assert read_table(tmp_path) == []


def show(rows: list[Row], with_classes: bool = True) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200, no_color=True)
    console.print(format_table(rows, with_classes))
    lines = console.file.getvalue().replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]


def test_seeds_are_gathered_into_mean_and_deviation() -> None:
    mious = [30.0, 32.0, 37.0]
    rows = [row(seed=seed, miou=miou, road=10.0 * seed) for seed, miou in enumerate(mious)] + [row("unguided")]
    *_, guided, unguided = show(rows)
    assert guided == ["guided", "test", "14 + 8", "3", f"33.0 ± {stdev(mious):.1f}", "0.25", "10", "–"]
    assert unguided == ["unguided", "test", "14 + 8", "1", "30.0", "0.25", "50", "–"]


def test_a_row_with_a_pre_trained_encoder_has_a_star_that_is_explained() -> None:
    rows = [row("guided", pretraining="tu-vit_small_patch14_dinov2, dino.safetensors"), row("unguided")]
    assert [line[0] for line in show(rows)[-2:]] == ["guided *", "unguided"]
    assert pretrained_note(rows) == "* encoder pre-trained: tu-vit_small_patch14_dinov2, dino.safetensors"
    assert pretrained_note(rows[1:]) == ""


def test_the_table_shows_the_difference_to_joint_training_where_there_is_one() -> None:
    rows = [
        *(row("joint training", seed, miou) for seed, miou in enumerate([30.0, 34.0])),
        *(row("student", seed, miou, device_hours=1.5) for seed, miou in enumerate([31.0, 33.5])),
        row("pseudo-labels", 0, 28.0),
    ]
    joint, student, pseudo = (line[4:7] for line in show(rows, with_classes=False)[-3:])
    assert joint == [f"32.0 ± {stdev([30, 34]):.1f}", "", "0.25"]
    assert student == [f"32.2 ± {stdev([31, 33.5]):.1f}", f"+0.2 ± {stdev([1.0, -0.5]):.1f}", "1.50"]
    assert pseudo == ["28.0", "-2.0", "0.25"]
    assert len(show(rows[2:], with_classes=False)[-1]) == 6


def summary_of(rows: list[Row], method: str, **fields: object) -> Summary:
    return next(
        part
        for part in summarise(rows)
        if part.method == method and all(getattr(part, name) == value for name, value in fields.items())
    )


def test_a_summary_gathers_the_seeds_of_a_method() -> None:
    rows = [
        row(seed=0, miou=30.0, device_hours=1.0, start="expert", pretraining="imagenet"),
        row("unguided", labels_train=0),
        row(seed=1, miou=33.0, device_hours=2.0, start="expert", pretraining="imagenet"),
    ]
    guided, unguided = summarise(rows)
    assert (guided.method, guided.seeds, guided.miou, guided.device_hours) == ("guided", 2, 31.5, 1.5)
    assert guided.deviation == pytest.approx(stdev([30, 33]))
    assert (guided.start, guided.pretraining) == ("expert", "imagenet")
    assert (unguided.method, unguided.seeds, unguided.deviation) == ("unguided", 1, None)
    assert unguided.labels_val == 8
    assert summarise([]) == []


def test_methods_are_compared_seed_by_seed_whatever_the_order() -> None:
    rows = [row("student", seed, miou) for seed, miou in ((0, 40.0), (1, 50.0), (2, 63.0))]
    rows += [row("joint training", seed, miou) for seed, miou in ((2, 60.0), (0, 39.0), (1, 48.0))]
    average, deviation = summary_of(rows, "student").against["joint training"]
    assert (average, deviation) == (pytest.approx(2), pytest.approx(1))  # far below the spread over the seeds
    assert summary_of(rows[::-1], "student").against == summary_of(rows, "student").against
    assert summary_of([rows[0], rows[4]], "student").against == {"joint training": (1.0, None)}


def test_methods_are_compared_at_equal_labels_or_with_none_and_on_the_same_split() -> None:
    rows = [
        row("student", miou=40.0),
        row("student", miou=50.0, labels_train=37),
        row("student", miou=20.0, split="test night"),
        row("joint training", miou=47.0, labels_train=37),
        row("joint training", miou=39.0),
        row("unguided", miou=25.0, labels_train=0),
    ]
    assert summary_of(rows, "student", labels_train=14, split="test").against == {
        "joint training": (1.0, None),
        "unguided": (15.0, None),
    }
    assert summary_of(rows, "student", labels_train=37).against == {
        "joint training": (3.0, None),
        "unguided": (25.0, None),
    }
    assert summary_of(rows, "student", split="test night").against == {}
    assert summary_of(rows, "unguided").against == {}


def test_the_one_expert_is_compared_with_every_seed() -> None:
    rows = [row("guided", seed, miou) for seed, miou in enumerate([30.0, 34.0, 35.0])]
    rows += [row("synthetic only", 0, 20.0, labels_train=0, labels_val=0)]
    average, deviation = summary_of(rows, "guided").against["synthetic only"]
    assert (average, deviation) == (pytest.approx(13), pytest.approx(stdev([30, 34, 35])))


def test_every_seed_is_compared_with_its_own_expert() -> None:
    rows = [row("guided", seed, miou) for seed, miou in enumerate([30.0, 34.0, 35.0])]
    own = [
        row("synthetic only", seed, miou, labels_train=0, labels_val=0) for seed, miou in ((2, 15), (0, 10), (1, 14))
    ]
    assert summary_of([*own, *rows], "guided").against["synthetic only"] == (20.0, 0.0)
    assert "synthetic only" not in summary_of([*own[:2], *rows], "guided").against


def test_without_a_partner_for_every_seed_nothing_is_compared() -> None:
    rows = [row("student", seed, 30.0) for seed in range(3)]
    rows += [row(name, seed, 20.0) for name in ("fine-tuned", "oracle") for seed in (0, 2)]
    part = summary_of(rows, "student")
    assert (part.against, part.oracle_share) == ({}, None)
    whole = summary_of([*rows, row("fine-tuned", 1, 20.0), row("oracle", 1, 20.0)], "student")
    assert whole.against == {"fine-tuned": (10.0, 0.0)}
    assert whole.oracle_share == pytest.approx(150)


def test_no_method_is_compared_with_itself() -> None:
    names = ["synthetic only", "unguided", "fine-tuned", "joint training"]
    rows = [row(name, miou=10.0 * number) for number, name in enumerate(names, 1)]
    for part in summarise(rows):
        assert set(part.against) == set(names) - {part.method}


def test_the_share_of_the_oracle_is_taken_seed_by_seed_at_any_budget() -> None:
    rows = [row("student", 0, 30.0), row("student", 1, 45.0), row("student", 0, 30.0, split="test night")]
    rows += [row("oracle", 1, 50.0, labels_train=367), row("oracle", 0, 60.0, labels_train=367)]
    assert summary_of(rows, "student").oracle_share == pytest.approx((50 + 90) / 2)
    assert summary_of(rows, "student", split="test night").oracle_share is None
    assert summary_of(rows, "oracle").oracle_share == pytest.approx(100)


def test_the_summary_lies_beside_the_rows(tmp_path: Path) -> None:
    rows = [row("student", seed, 30.0 + seed) for seed in range(2)] + [row("joint training", seed) for seed in range(2)]
    write_table(tmp_path, rows)
    written = json.loads((tmp_path / "table.json").read_text())["summary"]
    assert [Summary(**part) for part in written] == summarise(rows)
    assert written[0]["against"] == {"joint training": [0.5, pytest.approx(stdev([0, 1]))]}


def test_methods_splits_and_budgets_stay_apart() -> None:
    rows = [
        row(),
        row(split="test night"),
        row(labels_train=37),
        row(labels_val=0),
        row("expert", labels_train=0, labels_val=0),
    ]
    lines = show(rows)[-5:]
    assert [line[3] for line in lines] == ["1"] * 5
    assert [line[2] for line in lines] == ["14 + 8", "14 + 8", "37 + 8", "14 + 0", "0"]


def test_the_table_can_leave_the_classes_out() -> None:
    assert all("road" not in line for line in show([row()], with_classes=False))
    assert any("road" in line for line in show([row()]))


def test_spread() -> None:
    assert spread_of([31.24]) == "31.2"
    assert spread_of([1.0, 3.0]) == "2.0 ± 1.4"


def test_cityscapes_gives_the_means_over_16_and_13_classes_too(tmp_path: Path) -> None:
    per_class: dict[str, float | None] = dict.fromkeys(BUILT_IN["cityscapes19"].classes, 40.0)
    per_class |= {"terrain": 0.0, "truck": None, "wall": 8.0, "fence": 8.0, "pole": 8.0}
    means = subset_means(per_class)
    assert means == {"synthia16": pytest.approx((13 * 40 + 3 * 8) / 16), "synthia13": pytest.approx(40)}
    assert subset_means(dict.fromkeys(BUILT_IN["camvid11"].classes, 1.0)) == {}
    rows = [row(seed=seed).model_copy(update={"per_class": per_class, "means": means}) for seed in (0, 1)]
    write_table(tmp_path, rows)
    assert read_table(tmp_path) == rows
    line = next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert (float(line["synthia13"]), line["truck"]) == (40, "")
    header, shown = show(rows, with_classes=False)[-2:]
    assert dict(zip(header, shown, strict=True))["synthia13"] == "40.0 ± 0.0"
