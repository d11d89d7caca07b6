"""What one more trial of a sweep costs beside its training: a plain Tune function, and Ray Train inside the trial.

    python -m benchmarks.trial_overhead [--json FILE] [--trials 6]

Trials of one step, one at a time; the overhead is the slope between one trial and many.
"""

import argparse
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.tuning import run_tune

SMALL = [
    "data.synthetic_images=40",
    "data.real_images=40",
    "data.test_images=4",
    "expert.steps=1",
    "translator.steps=1",
    "translator.batch=2",
    "labels.budget=2",
    "labels.validation=1",
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--trials", type=int, default=6)
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sweep(Path(folder), 1, 1, 0)  # makes the data and the expert
        for name, workers in (("plain function", 1), ("Ray Train, 2 workers", 2)):
            one, many = (sweep(Path(folder), workers, trials, trials * workers) for trials in (1, options.trials))
            seconds[name] = (many - one) / (options.trials - 1)
    print_table(("one more trial", "seconds"), list(seconds.items()))
    write_json(options.json, {"machine": describe_machine(), "options": vars(options), "seconds_per_trial": seconds})


def sweep(folder: Path, workers: int, trials: int, number: int) -> float:
    """Seconds of a sweep of so many trials, each of another setting so that none is found finished."""
    weights = [0.1 + 0.8 * (index + 100 * number) / 10_000 for index in range(trials)]
    space = {
        "search": {"guidance.weight": {"grid": weights}},
        "trials": 1,
        "concurrent": 1,
        "scheduler": "none",
        "resources": {"workers": workers},
        "table": {"methods": ["guided"]},
    }
    path = folder / f"space-{number}.yaml"
    path.write_text(yaml.safe_dump(space))
    start = time.monotonic()
    run_tune(str(path), SMALL, runs=folder / "runs")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
