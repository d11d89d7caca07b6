"""A selection as files: a table, the images, lists for CVAT and Label Studio, and ``labels.yaml``."""

import csv
import io
import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from raydelta.config import GuidanceConfig
from raydelta.data.shards import is_plain, read_rows
from raydelta.errors import UserError
from raydelta.storage import write_atomically
from raydelta.training.job import Job, label_ids


@dataclass(frozen=True)
class Choice:
    """One image, or one cell of it, to be labelled."""

    id: str
    sequence: str
    score: float
    cell: int  # row by row
    labelled: bool  # the data set has its label already, the run has not used it


def cell_box(cell: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a cell in an image of (width, height), the latter two outside."""
    (columns, rows), (width, height) = grid, size
    row, column = divmod(cell, columns)
    left, top = column * width // columns, row * height // rows
    return left, top, -(-(column + 1) * width // columns), -(-(row + 1) * height // rows)


def write_selection(job: Job, choices: Sequence[Choice], grid: tuple[int, int] | None, directory: Path) -> None:
    """``selection.csv``, the photographs themselves, import lists for CVAT and Label Studio, and ``labels.yaml``.

    ``labels.yaml`` names all labels once these are bought: what ``labels.ids`` takes.
    """
    columns = ["id", "image", "height", "width"]
    stored = read_rows(
        job.config.data.real, "train", ids={choice.id for choice in choices}, columns=columns
    ).to_pylist()
    rows = {row["id"]: row for row in stored}
    ids = list(dict.fromkeys(choice.id for choice in choices))
    files = {name: _file_name(name, rows[name]["image"]) for name in ids}
    boxes: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["rank", "id", "sequence", "score", *(["left", "top", "right", "bottom"] if grid else [])])
    for rank, choice in enumerate(choices, 1):
        box = cell_box(choice.cell, grid, (rows[choice.id]["width"], rows[choice.id]["height"])) if grid else ()
        table.writerow([rank, choice.id, choice.sequence, f"{choice.score:.6f}", *box])
        if len(box) == 4:
            boxes[choice.id].append(box)
    for name in ids:
        target = directory / "images" / files[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(rows[name]["image"])
    write_atomically(directory / "images.txt", "".join(f"{files[name]}\n" for name in ids))
    write_atomically(directory / "manifest.jsonl", _cvat_manifest([(files[name], rows[name]) for name in ids]))
    tasks = [
        {
            "data": {"image": f"/data/local-files/?d=images/{quote(files[name])}"},
            "meta": {"id": name} | ({"boxes": boxes[name]} if grid else {}),
        }
        for name in ids
    ]
    write_atomically(directory / "label-studio.json", json.dumps(tasks, indent=1) + "\n")
    train, validation = label_ids(job)
    labels = {"train": [*train, *ids], "validation": validation}
    write_atomically(directory / "labels.yaml", yaml.safe_dump(labels, sort_keys=False))
    write_atomically(directory / "selection.csv", text.getvalue())  # last: it stands for the whole


def _file_name(identifier: str, encoded: bytes) -> str:
    if not is_plain(identifier):
        raise UserError(
            f"{identifier!r}: an image of that id cannot be written as a file; import the set with other names"
        )
    return identifier + (".png" if encoded.startswith(b"\x89PNG") else ".jpg")


def _cvat_manifest(files: Sequence[tuple[str, Any]]) -> str:
    """A manifest as CVAT reads it from a share or a bucket: one JSON object a line."""
    lines: list[dict[str, Any]] = [{"version": "1.1"}, {"type": "images"}]
    for file, row in files:
        name, _, extension = file.rpartition(".")
        lines.append({"name": name, "extension": f".{extension}", "width": row["width"], "height": row["height"]})
    return "".join(json.dumps(line) + "\n" for line in lines)


def training_command(job: Job, choices: Sequence[Choice], directory: Path) -> str:
    """The command that trains with the old labels and the new ones."""
    train, validation = label_ids(job)
    budget = len(train) + len({choice.id for choice in choices})
    arguments = ["--runs", job.directory.parent, "--config", job.directory / "checkpoint" / "config.yaml"]
    arguments += [f"labels.ids={directory / 'labels.yaml'}", f"labels.budget={budget}"]
    arguments += [f"labels.validation={len(validation)}"]
    if job.config.guidance.weight == 0:  # an unguided translator would leave the labels unused
        arguments.append(f"guidance.weight={GuidanceConfig().weight}")
    set_with_labels = [] if all(choice.labelled for choice in choices) else ["--real", "SET_WITH_THE_NEW_LABELS"]
    return shlex.join(map(str, ["raydelta", "train", "translator", *set_with_labels, *arguments]))
