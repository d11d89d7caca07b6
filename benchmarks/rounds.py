"""What a round of labelling costs beside its training: choosing, adding the labels, starting the next training.

    python -m benchmarks.rounds [--json FILE] [--rounds 6] [--strategy combined] [a.b=c ...]

A replay of one strategy and one seed on the built-in sets; a round's overhead is the time from the end of one training
to the end of the next, less the seconds that the latter trained for. It hardly depends on how long a training is, so
the median over the rounds says from which length on it is at most five per cent.
"""

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import yaml

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.tuning.tune import tune

STEPS = 30  # of a round


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--strategy", default="combined")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    tree = {
        "config": {"labels.validation": 0, "expert.steps": 60, "translator.steps": STEPS},
        "table": {"methods": ["guided"], "seeds": [0]},
        "replay": {
            "strategies": [options.strategy],
            "budgets": [4 * number for number in range(1, options.rounds + 2)],
            "steps": STEPS,
        },
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "space.yaml").write_text(yaml.safe_dump(tree))
        tune(str(folder / "space.yaml"), options.overrides, runs=folder / "runs")
        stages = sorted((folder / "runs").glob("translator-*/stage.json"), key=lambda path: path.stat().st_mtime)
        ends = [path.stat().st_mtime for path in stages]
        trained = [json.loads(path.read_text())["metrics"]["device_seconds"] for path in stages]
    assert len(stages) == options.rounds + 1, [path.parent.name for path in stages]
    beside = [end - start - took for (start, end), took in zip(pairwise(ends), trained[1:], strict=True)]
    overhead = statistics.median(beside)
    print_table(("round", "training s", "beside it s"), list(zip(range(1, 99), trained[1:], beside, strict=False)))
    print(f"median {overhead:.1f} s: at most 5 % of a training of {overhead / 0.05 / 60:.1f} minutes and more")
    result = {"machine": describe_machine(), "options": vars(options), "training": trained[1:], "beside": beside}
    write_json(options.json, result | {"overhead_seconds": overhead, "ratios": {}})


if __name__ == "__main__":
    main()
