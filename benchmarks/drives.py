"""Leave one drive out: the table for every sequence of a data set's training split, tested on that sequence alone.

    python -m benchmarks.drives DATA [--space recipe] [--adapt GAP] [--sequences A B] [--budgets 37] [--seeds 0]
        [--json FILE] [a.b=c ...]

DATA is an imported data set. A test split often comes from one other drive; what wins there need not win on the next.
With --adapt a team has driven there before: the first half of the drive's photographs is in the training split, without
labels; the next GAP photographs are left out, so that no test photograph shows a place just seen; the rest is tested.
Settings are those of a shipped space, table.yaml by default; the data set's own test split is never read.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import write_json
from raydelta.compute.cluster import ensure_ray
from raydelta.data.shards import Description, Item, StoredRow, list_ids, read_manifest, read_rows
from raydelta.data.writing import write_dataset
from raydelta.errors import UserError
from raydelta.results.row import Row
from raydelta.search_space import SPACES
from raydelta.tuning.tune import tune

OF_TABLE = [
    "unguided",
    "guided",
    "student",
    "pseudo-labels",
    "ensemble",
    "ensemble, untranslated",
    "joint training",
    "mean teacher",
]
"""Of the fifteen methods of table.yaml, those that are trained for every drive."""


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--space", default="table")
    parser.add_argument("--adapt", type=int, metavar="GAP")
    parser.add_argument("--sequences", nargs="*")
    parser.add_argument("--budgets", nargs="*", type=int, default=[37])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--concurrent", type=int)
    parser.add_argument("--json")
    options, overrides = parser.parse_known_args()
    ensure_ray()
    tree = yaml.safe_load((SPACES / f"{options.space}.yaml").read_text())
    methods = OF_TABLE if options.space == "table" else tree["table"]["methods"]
    tree["table"] = {"budgets": options.budgets, "seeds": options.seeds, "methods": methods}
    space = options.runs / "drives.yaml"
    options.runs.mkdir(parents=True, exist_ok=True)
    space.write_text(yaml.safe_dump(tree | {"concurrent": options.concurrent}))
    sequences = options.sequences or sorted({sample.sequence for sample in list_ids(options.data, "train")})
    tables: dict[str, list[dict[str, Any]]] = {}
    for sequence in sequences:
        target = options.runs / (f"without-{sequence}" if options.adapt is None else f"half-{sequence}-{options.adapt}")
        if not target.exists():
            hold_out(options.data, target, sequence, options.adapt)
        rows = tune(str(space), [f"data.real={target}", *overrides], runs=options.runs).rows
        tables[sequence] = [row.model_dump() for row in rows]
        print(f"\ntested on {sequence}\n{format_rows(rows)}")
    write_json(options.json, {"options": vars(options), "tables": tables})


def hold_out(uri: str, target: Path, sequence: str, gap: int | None = None) -> None:
    """A data set of the training split of another one, divided by ``divide``."""
    manifest = read_manifest(uri)
    splits = divide(read_rows(uri, "train", columns=list(StoredRow.__annotations__)).to_pylist(), sequence, gap)
    by_id = {row["id"]: row for rows in splits.values() for row in rows}
    write_dataset(
        target,
        {name: [Item(row["id"], row["sequence"], "", None) for row in rows] for name, rows in splits.items()},
        lambda item: by_id[item.id],
        Description(
            name=f"{manifest.name} without {sequence}" if gap is None else f"{manifest.name} with half of {sequence}",
            domain="real",
            taxonomy=manifest.taxonomy,
            source=uri,
            options={"sequence": sequence, "gap": gap},
        ),
    )


def divide(rows: Sequence[StoredRow], sequence: str, gap: int | None) -> dict[str, list[StoredRow]]:
    """The splits ``train`` and ``test`` of which the latter is a sequence, or its end.

    Args:
        gap: None: the whole sequence is tested. Else its first half, by the numbers in the ids, is in ``train`` without
            labels, and so many photographs after that are in no split.

    Raises:
        UserError: nothing is left to test.
    """
    others = [row for row in rows if row["sequence"] != sequence]
    drive = sorted((row for row in rows if row["sequence"] == sequence), key=lambda row: _by_number(row["id"]))
    if gap is None:
        return {"train": others, "test": drive}
    half = len(drive) // 2
    if not drive[half + gap :]:
        raise UserError(f"--adapt {gap}: {sequence} has {len(drive)} photographs; half of them and the gap leave none")
    seen: list[StoredRow] = [{**row, "label": None} for row in drive[:half]]
    return {"train": [*others, *seen], "test": drive[half + gap :]}


def _by_number(name: str) -> list[tuple[int, str]]:
    """``drive_9`` before ``drive_10``."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def format_rows(rows: list[Row]) -> str:
    """mIoU on the held-out sequence, best first."""
    ranked = sorted((row for row in rows if row.split == "test"), key=lambda row: -row.miou)
    return "\n".join(f"{row.miou:6.1f}  {row.method}, {row.labels_train} labels, seed {row.seed}" for row in ranked)


if __name__ == "__main__":
    main()
