"""Evaluation: confusion matrices, IoU, and the table of methods that every run ends with.

A mean IoU here is that of one confusion matrix summed over all images (and ranks), so it does not depend on the batch
or the number of workers. A class that neither labels nor predictions hold is left out of the mean, and named.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.table import Table

from raydelta.data.streams import Images
from raydelta.place import Place
from raydelta.stages import write_atomically
from raydelta.taxonomy import BUILT_IN, IGNORE


class Row(BaseModel):
    """One line of the table: one method, label budget and seed on one split."""

    method: str
    labels_train: int
    labels_val: int  # labels that were looked at to validate; part of what the result cost
    seed: int
    real: str  # name of the real data set
    split: str
    miou: float  # percent
    per_class: dict[str, float | None]  # percent; None: the class is absent
    means: dict[str, float] = {}  # mIoU over the classes of a smaller built-in taxonomy: synthia16, synthia13
    images: int


def confusion_matrix(
    predict: Callable[[Any], Any], images: Images, classes: int, place: Place, batch: int = 16
) -> np.ndarray:
    """Pixel counts int64 (classes, classes), rows truth and columns prediction, summed over the ranks. Collective.

    Args:
        predict: images (N, 3, H, W) in [-1, 1] on the place's device → logits (N, classes, H, W).
    """
    import torch

    from raydelta.data.augment import to_float

    assert images.labels is not None
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=place.device)
    rows = np.arange(place.rank, len(images), place.world)
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            prediction = predict(to_float(torch.from_numpy(images.pixels[chosen]).to(place.device))).argmax(1)
            truth = torch.from_numpy(images.labels[chosen]).to(place.device).long()
            valid = truth != IGNORE
            counts += torch.bincount(truth[valid] * classes + prediction[valid], minlength=classes * classes)
    return place.total(counts).view(classes, classes).cpu().numpy()


def class_ious(confusion: np.ndarray) -> list[float | None]:
    """IoU of every class in percent; None where the class is in neither labels nor predictions."""
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return [100.0 * float(hit) / float(whole) if whole else None for hit, whole in zip(hits, union, strict=True)]


def mean_iou(ious: Sequence[float | None]) -> float:
    """Mean over the classes that are present, in percent; NaN if there is none."""
    present = [iou for iou in ious if iou is not None]
    return mean(present) if present else float("nan")


def subset_means(per_class: Mapping[str, float | None]) -> dict[str, float]:
    """mIoU over the classes of every built-in taxonomy that is a part of this one, in percent."""
    return {
        name: mean_iou([per_class[own] for own in smaller.classes])
        for name, smaller in sorted(BUILT_IN.items(), reverse=True)
        if set(smaller.classes) < per_class.keys()
    }


def write_table(directory: Path, rows: Sequence[Row]) -> None:
    """``table.json`` (key ``rows``) and ``table.csv`` with one column per class."""
    write_atomically(directory / "table.json", json.dumps({"rows": [row.model_dump() for row in rows]}, indent=1))
    classes = list(rows[0].per_class) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [name for name in Row.model_fields if name not in ("per_class", "means")]
    means = list(rows[0].means) if rows else []
    writer.writerow([*fields, *means, *classes])
    for row in rows:
        ious = [*(row.means[name] for name in means), *(row.per_class[name] for name in classes)]
        writer.writerow([getattr(row, name) for name in fields] + ["" if iou is None else f"{iou:.2f}" for iou in ious])
    write_atomically(directory / "table.csv", text.getvalue())


def read_table(directory: Path) -> list[Row]:
    """The rows that ``write_table`` wrote."""
    return [Row(**row) for row in json.loads((directory / "table.json").read_text())["rows"]]


def format_table(rows: Sequence[Row], with_classes: bool = True) -> Table:
    """The rows for a terminal, seeds gathered into mean ± standard deviation."""
    groups: dict[tuple[str, str, int, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.method, row.split, row.labels_train, row.labels_val].append(row)
    classes = list(rows[0].per_class) if rows and with_classes else []
    means = list(rows[0].means) if rows else []
    table = Table(
        *("method", "split", "labels\n+ val", "seeds", "mIoU %", *means, *classes),
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    for (method, split, train, validation), group in groups.items():
        per_class = [[row.per_class[name] for row in group] for name in classes]
        labels = f"{train} + {validation}" if train or validation else "0"
        spread = spread_of([row.miou for row in group])
        smaller = [spread_of([row.means[name] for row in group]) for name in means]
        cells = [*smaller, *map(_class_cell, per_class)]
        table.add_row(method, split, labels, str(len(group)), f"[bold]{spread}[/]", *cells)
    return table


def spread_of(values: Sequence[float]) -> str:
    """``31.2 ± 0.8``: mean and sample standard deviation, the latter from two values on."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _class_cell(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    return f"{mean(present):.0f}" if present else "–"
