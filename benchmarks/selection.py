"""Which strategy needs the fewest labels and clicks: `raydelta tune active` over more seeds, and with a drive left out.

    python -m benchmarks.selection DATA [--seeds 8] [--strategies random stride …] [--without DRIVE] [--json FILE]

DATA is an imported data set whose photographs are all labelled. With --without its training split is all that is read:
one drive of it is the test split. Trainings that are done are not done again, so a run that was stopped goes on.
"""

import argparse
from pathlib import Path

import yaml

from benchmarks.common import describe_machine, write_json
from benchmarks.drives import hold_out
from raydelta.compute.cluster import ensure_ray
from raydelta.search_space import SPACES
from raydelta.tuning.tune import tune

KEPT = {"method", "seed", "labels_train", "domain", "split", "miou", "pixels", "clicks", "device_hours"}
"""Of each row of the table."""


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--strategies", nargs="*")
    parser.add_argument("--budgets", nargs="*", type=int)
    parser.add_argument("--without")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json")
    options, overrides = parser.parse_known_args()
    ensure_ray()
    tree = yaml.safe_load((SPACES / "active.yaml").read_text())
    tree["table"]["seeds"] = list(range(options.seeds))
    tree["replay"] |= {"strategies": options.strategies} if options.strategies else {}
    tree["replay"] |= {"budgets": options.budgets} if options.budgets else {}
    options.runs.mkdir(parents=True, exist_ok=True)
    space, data = options.runs / "selection.yaml", Path(options.data)
    space.write_text(yaml.safe_dump(tree))
    if options.without:
        data = options.runs / f"without-{options.without}"
        if not data.exists():
            hold_out(options.data, data, options.without)
    outcome = tune(str(space), [f"data.real={data}", *overrides], runs=options.runs)
    print("\n".join(outcome.findings))
    rows = [row.model_dump(include=KEPT) for row in outcome.rows]
    result = {"machine": describe_machine(), "options": vars(options), "findings": outcome.findings, "rows": rows}
    write_json(options.json, result)


if __name__ == "__main__":
    main()
