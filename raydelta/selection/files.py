"""A selection as files: its table, the images, tasks for labelling tools, and the labels to train on next."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from raydelta.config import GuidanceConfig
from raydelta.data.decoding import STORED, load_picture
from raydelta.data.labels import Box, Grid, cell_box, cells_mask
from raydelta.data.price import Price, price_of
from raydelta.data.shards import is_plain, read_rows
from raydelta.data.taxonomy import IGNORE
from raydelta.data.writing import encode_jpeg
from raydelta.errors import UserError
from raydelta.recipes import short_name
from raydelta.selection.tools import IMAGES, STUDIO, Task, write_tasks
from raydelta.storage.files import shown, write_atomically
from raydelta.training.job import Job, label_ids

ORDER, FORMAT = "selection.json", 1


@dataclass(frozen=True)
class Choice:
    """One image, or one cell of it, to be labelled."""

    id: str
    sequence: str
    score: float | None  # None: the strategy has none
    cell: int  # row by row
    labelled: bool  # the data set has its label already, the run has not used it


def write_selection(
    job: Job,
    choices: Sequence[Choice],
    grid: Grid | None,
    predictions: Mapping[str, NDArray[np.uint8]],
    strategy: str,
    directory: Path,
) -> Price:
    """Write the table, the images, tasks for CVAT and Label Studio, and ``labels.yaml``; returns the price.

    ``labels.yaml`` names all labels once these are bought: what ``labels.ids`` takes. With a grid the images are dark
    outside the cells that are wanted.

    Args:
        predictions: id → predicted classes [H, W] at the size of training, of every chosen image.
    """
    columns = ["id", "image", "height", "width"]
    stored = read_rows(
        job.config.data.real, "train", ids={choice.id for choice in choices}, columns=columns
    ).to_pylist()
    rows = {row["id"]: row for row in stored}
    ids = list(dict.fromkeys(choice.id for choice in choices))
    cells = {name: tuple(choice.cell for choice in choices if choice.id == name) for name in ids} if grid else {}
    tasks, contents = [], {}
    for name in ids:
        encoded, size = rows[name]["image"], (rows[name]["width"], rows[name]["height"])
        draft = np.asarray(Image.fromarray(predictions[name]).resize(size, Image.Resampling.NEAREST))
        boxes: tuple[Box, ...] = ()
        if grid:
            wanted = cells_mask(cells[name], grid, size)
            boxes = tuple(cell_box(cell, grid, size) for cell in cells[name])
            draft = np.where(wanted, draft, IGNORE).astype(np.uint8)
            encoded = _darken(encoded, wanted)
        tasks.append(Task(name, _file_name(name, encoded), boxes, draft))
        contents[tasks[-1].file] = encoded
    _take_back(directory)
    write_tasks(tasks, job.taxonomy, job.directory.name, directory)
    for file, content in contents.items():
        target = directory / "images" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    write_atomically(directory / "labels.yaml", yaml.safe_dump(bought_then(job, choices, grid), sort_keys=False))
    price = price_of({name: predictions[name] for name in ids}, cells, grid or (1, 1))
    order = {
        "format": FORMAT,
        "strategy": strategy,
        "data": job.config.data.real,
        "images": ids,
        "cells": {"grid": grid, "images": cells} if grid else None,
        "price": asdict(price),
        "train": training_arguments(job, choices),
    }
    write_atomically(directory / ORDER, json.dumps(order, indent=1) + "\n")
    scored = all(choice.score is not None for choice in choices)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    sides = ["left", "top", "right", "bottom"] if grid else []
    table.writerow(["rank", "id", "sequence", *["score"] * scored, *sides])
    for rank, choice in enumerate(choices, 1):
        size = rows[choice.id]["width"], rows[choice.id]["height"]
        score = [f"{choice.score:.6f}"] if scored else []
        box = cell_box(choice.cell, grid, size) if grid else ()
        table.writerow([rank, choice.id, choice.sequence, *score, *box])
    write_atomically(directory / "selection.csv", text.getvalue())  # last: it stands for the whole
    return price


def _take_back(directory: Path) -> None:
    """Remove what an earlier selection there asked for, so that nobody labels an image that is not asked for now.

    The order goes first: without it the rest counts as unfinished.
    """
    (directory / ORDER).unlink(missing_ok=True)
    if not (directory / STUDIO).exists():
        return
    for file in (directory / IMAGES).read_text().splitlines():
        if is_plain(file):
            (directory / "images" / file).unlink(missing_ok=True)


def _darken(encoded: bytes, wanted: NDArray[np.bool_]) -> bytes:
    """The image, dark where nothing is to be labelled: one still sees where one is."""
    pixels = np.asarray(load_picture(encoded, STORED).convert("RGB"))
    return encode_jpeg(Image.fromarray(np.where(wanted[..., None], pixels, pixels // 4)))


def _file_name(identifier: str, encoded: bytes) -> str:
    if not is_plain(identifier):
        raise UserError(
            f"{identifier!r}: an image of that id cannot be written as a file; import the set with other names"
        )
    return identifier + (".png" if encoded.startswith(b"\x89PNG") else ".jpg")


def bought_then(job: Job, choices: Sequence[Choice], grid: Grid | None) -> dict[str, Any]:
    """The old labels and the new ones, as ``labels.ids`` takes them. Cells join those that the run has of an image."""
    train, validation = label_ids(job)
    ids: dict[str, Any] = {
        "train": list(dict.fromkeys([*train, *(choice.id for choice in choices)])),
        "validation": validation,
    }
    before = job.config.labels.ids
    known = before.cells if before is not None else None
    if grid is None and known is None:
        return ids
    images = {name: list(cells) for name, cells in (known.images if known else {}).items() if name in train}
    for choice in choices:
        if grid is None:
            images.pop(choice.id, None)
        else:
            images.setdefault(choice.id, []).append(choice.cell)
    return ids | {"cells": {"grid": list(grid or known.grid), "images": images}}  # type: ignore[union-attr]


def training_arguments(job: Job, choices: Sequence[Choice]) -> list[str]:
    """What the next ``raydelta train`` takes beside its data set and ``labels.ids``."""
    train, validation = label_ids(job)
    budget = len({*train, *(choice.id for choice in choices)})
    arguments = [
        short_name(job.kind),
        "--runs",
        shown(job.directory.parent),
        "--config",
        shown(job.directory / "checkpoint" / "config.yaml"),
    ]
    arguments += [f"labels.budget={budget}", f"labels.validation={len(validation)}"]
    if job.kind == "translator" and job.config.guidance.weight == 0:  # it would leave the labels unused
        arguments.append(f"guidance.weight={GuidanceConfig().weight}")
    return arguments


def training_command(directory: Path, arguments: Sequence[str], real: str | None = None) -> str:
    """The command that trains with the old labels and the new ones of a selection.

    Args:
        real: the data set that holds the new labels; None: the run's own does.
    """
    data = ["--real", real] if real is not None else []
    old = not arguments or arguments[0].startswith("-")  # of an older version, which trained translators only
    row, *others = ["translator", *arguments] if old else arguments
    return shlex.join(["raydelta", "train", row, *data, *others, f"labels.ids={directory / 'labels.yaml'}"])
