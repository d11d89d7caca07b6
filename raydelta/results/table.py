"""The table of results: its rows, their summary over seeds, and its files."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from pydantic import BaseModel
from rich.table import Table

from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.results.recommend import Recommended, recommend
from raydelta.results.row import Row, name_split
from raydelta.storage.files import write_atomically


class Summary(BaseModel):
    """All seeds of one method, label budget and split, and how they stand to what the same labels buy elsewhere."""

    method: str
    domain: Literal["real", "synthetic"] = "real"
    split: str
    labels_train: int
    labels_val: int
    seeds: int
    start: str
    pretraining: str | None
    device_hours: float  # mean
    miou: float  # mean, percent
    deviation: float | None  # sample standard deviation, from two seeds on
    against: dict[str, tuple[float, float | None]]  # paired by seed: mean and deviation of the difference, in points
    oracle_share: float | None  # mean, percent of the oracle's mIoU with the same seed

    @property
    def shown(self) -> str:
        """mIoU with its deviation over the seeds, if there are several."""
        return _spread(self.miou, self.deviation)

    @property
    def images_of(self) -> str:
        """Domain and split in words."""
        return name_split(self.domain, self.split)

    @property
    def marked(self) -> str:
        """The method, with a star if its encoder was pre-trained."""
        return f"{self.method} *" if self.pretraining else self.method

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that it sums up."""
        return [row for row in rows if _key(row) == _key(self)]


Key = tuple[str, str, str, int, int]


def _key(part: Row | Summary) -> Key:
    """What all seeds of a line of the table share."""
    return part.method, part.domain, part.split, part.labels_train, part.labels_val


REFERENCES = ("synthetic only", "unguided", "fine-tuned", "joint training")
"""What a row is compared with, seed by seed, at the same labels or at none."""


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Mean and spread per method, split and budget, differences paired per seed; in the order of the rows."""
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_key(row)].append(row)
    return [_summary(group, rows) for group in groups.values()]


def _summary(group: Sequence[Row], rows: Sequence[Row]) -> Summary:
    against = {}
    for name in REFERENCES:
        pairs = [(row.miou, other.miou) for row in group if (other := _partner(row, name, rows)) is not None]
        if name != group[0].method and len(pairs) == len(group):
            against[name] = (mean(a - b for a, b in pairs), _deviation([a - b for a, b in pairs]))
    oracles = [_partner(row, "oracle", rows) for row in group]
    shares = [
        100 * row.miou / best.miou for row, best in zip(group, oracles, strict=True) if best is not None and best.miou
    ]
    first = group[0]
    return Summary(
        **first.model_dump(include={"method", "domain", "split", "labels_train", "labels_val", "start", "pretraining"}),
        seeds=len(group),
        device_hours=mean(row.device_hours for row in group),
        miou=mean(row.miou for row in group),
        deviation=_deviation([row.miou for row in group]),
        against=against,
        oracle_share=mean(shares) if len(shares) == len(group) else None,
    )


def _partner(row: Row, method: str, rows: Sequence[Row]) -> Row | None:
    """The row of another method with the same split, seed and training labels (or with none, if it takes none)."""
    found = [
        other
        for other in rows
        if (other.method, other.domain, other.split) == (method, row.domain, row.split)
        and (method == "oracle" or other.labels_train in (0, row.labels_train))
    ]
    if method == "synthetic only" and len(found) == 1:  # in a replay all seeds share the expert
        return found[0]
    return next((other for other in found if other.seed == row.seed), None)


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def write_table(directory: Path, rows: Sequence[Row]) -> None:
    """``table.json`` (keys ``recommended``, ``summary`` and ``rows``) and ``table.csv`` with one column per class."""
    summary, whole = (_lines(part.model_dump() for part in parts) for parts in (summarise(rows), rows))
    chosen = recommend(rows).model_dump_json()
    write_atomically(
        directory / "table.json", f'{{\n"recommended": {chosen},\n"summary": {summary},\n"rows": {whole}\n}}\n'
    )
    classes = list(rows[0].per_class) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [name for name in Row.model_fields if name not in ("per_class", "means", "stage", "confusion")]
    means = list(rows[0].means) if rows else []
    writer.writerow([*fields, *means, *classes])
    for row in rows:
        ious = [*(row.means[name] for name in means), *(row.per_class[name] for name in classes)]
        writer.writerow([getattr(row, name) for name in fields] + ["" if iou is None else f"{iou:.2f}" for iou in ious])
    write_atomically(directory / "table.csv", text.getvalue())


def _lines(objects: Iterable[dict[str, Any]]) -> str:
    """A JSON list with one object on a line."""
    return "[\n" + ",\n".join(map(json.dumps, objects)) + "\n]"


def read_table(directory: Path) -> list[Row]:
    """The rows that ``write_table`` wrote.

    Raises:
        UserError: there is no table, or it is damaged.
    """
    path = directory / "table.json"
    try:
        rows = [Row(**row) for row in read_json_file(path)["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        raise UserError(f"{path}: damaged; the same command again renews it: {error}") from error
    if len({(tuple(row.per_class), tuple(row.means)) for row in rows}) > 1:
        raise UserError(f"{path}: damaged: its rows are of different classes; the same command again renews it")
    return rows


def recommended_row(directory: Path) -> str | None:
    """The method that a sweep's table recommends; as ``read_recommended``."""
    chosen = read_recommended(directory)
    return chosen.method if chosen is not None else None


def read_recommended(directory: Path) -> Recommended | None:
    """What a sweep's table recommends; None: there is no table, or it has no validation labels.

    Raises:
        UserError: the table is damaged.
    """
    if not (directory / "table.json").exists():
        return None
    try:
        return recommend(read_table(directory)).overall
    except UserError as error:
        raise UserError(f"{error}; or name a --method") from error


def format_table(rows: Sequence[Row], with_classes: bool = True) -> Table:
    """The rows for a terminal, seeds gathered into mean ± standard deviation."""
    classes = list(rows[0].per_class) if rows and with_classes else []
    means = list(rows[0].means) if rows else []
    joint = any(row.method == "joint training" for row in rows)
    table = Table(
        *("method", "split", "labels\n+ val", "seeds", "mIoU %", *["− joint\ntraining"] * joint, "device\nhours"),
        *(*means, *classes),
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    for part in summarise(rows):
        group = part.of(rows)
        labels = f"{part.labels_train} + {part.labels_val}" if part.labels_train or part.labels_val else "0"
        difference = part.against.get("joint training")
        table.add_row(
            *(part.marked, part.images_of, labels, str(part.seeds), f"[bold]{part.shown}[/]"),
            *["" if difference is None else _spread(*difference, sign="+")] * joint,
            f"{part.device_hours:.2f}",
            *(spread_of([row.means[name] for row in group]) for name in means),
            *(_class_cell([row.per_class[name] for row in group]) for name in classes),
        )
    return table


def pretrained_note(rows: Sequence[Row]) -> str:
    """What the star stands for; empty where no encoder was pre-trained."""
    trained = sorted({row.pretraining for row in rows if row.pretraining})
    return f"* encoder pre-trained: {'; '.join(trained)}" if trained else ""


def _spread(average: float, deviation: float | None, sign: str = "") -> str:
    return f"{average:{sign}.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def spread_of(values: Sequence[float]) -> str:
    """``31.2 ± 0.8``: mean and sample standard deviation, the latter from two values on."""
    return _spread(mean(values), _deviation(values))


def _class_cell(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    return f"{mean(present):.0f}" if present else "–"
