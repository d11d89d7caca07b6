"""Leave one drive out: the table for every sequence of a data set's training split, tested on that sequence alone.

    python -m benchmarks.drives DATA [--sequences A B] [--budgets 37] [--seeds 0] [--json FILE] [a.b=c ...]

DATA is an imported data set. A test split often comes from one other drive; what wins there need not win on the next.
Settings are those of tune_spaces/table.yaml; the data set's own test split is never read.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import write_json
from raydelta.compute.cluster import ensure_ray
from raydelta.data.shards import Description, Item, StoredRow, list_ids, read_manifest, read_rows
from raydelta.data.writing import write_dataset
from raydelta.results.row import Row
from raydelta.search_space import SPACES
from raydelta.tuning.tune import tune

METHODS = ["unguided", "guided", "student", "pseudo-labels", "ensemble", "ensemble, untranslated", "joint training"]


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--sequences", nargs="*")
    parser.add_argument("--budgets", nargs="*", type=int, default=[37])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--concurrent", type=int)
    parser.add_argument("--json")
    options, overrides = parser.parse_known_args()
    ensure_ray()
    tree = yaml.safe_load((SPACES / "table.yaml").read_text())
    tree["table"] = {"budgets": options.budgets, "seeds": options.seeds, "methods": [*METHODS, "mean teacher"]}
    space = options.runs / "drives.yaml"
    options.runs.mkdir(parents=True, exist_ok=True)
    space.write_text(yaml.safe_dump(tree | {"concurrent": options.concurrent}))
    sequences = options.sequences or sorted({sample.sequence for sample in list_ids(options.data, "train")})
    tables: dict[str, list[dict[str, Any]]] = {}
    for sequence in sequences:
        target = options.runs / f"without-{sequence}"
        if not target.exists():
            hold_out(options.data, target, sequence)
        rows = tune(str(space), [f"data.real={target}", *overrides], runs=options.runs).rows
        tables[sequence] = [row.model_dump() for row in rows]
        print(f"\ntested on {sequence}\n{format_rows(rows)}")
    write_json(options.json, {"options": vars(options), "tables": tables})


def hold_out(uri: str, target: Path, sequence: str) -> None:
    """A data set of the training split of another one, whose test split is one of the sequences."""
    manifest = read_manifest(uri)
    rows: list[StoredRow] = read_rows(uri, "train", columns=list(StoredRow.__annotations__)).to_pylist()
    by_id = {row["id"]: row for row in rows}
    items = [Item(row["id"], row["sequence"], "", None) for row in rows]
    write_dataset(
        target,
        {
            "train": [item for item in items if item.sequence != sequence],
            "test": [item for item in items if item.sequence == sequence],
        },
        lambda item: by_id[item.id],
        Description(
            name=f"{manifest.name} without {sequence}",
            domain="real",
            taxonomy=manifest.taxonomy,
            source=uri,
            options={"sequence": sequence},
        ),
    )


def format_rows(rows: list[Row]) -> str:
    """mIoU on the held-out sequence, best first."""
    ranked = sorted((row for row in rows if row.split == "test"), key=lambda row: -row.miou)
    return "\n".join(f"{row.miou:6.1f}  {row.method}, {row.labels_train} labels, seed {row.seed}" for row in ranked)


if __name__ == "__main__":
    main()
