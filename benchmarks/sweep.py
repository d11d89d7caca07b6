"""The sweep of `raydelta tune` against the naive loop: every setting with an expert of its own, trained to the end.

    python -m benchmarks.sweep [--json FILE] [--space laptop] [--expert-steps 100] [--translator-steps 60] [a.b=c ...]

Both train the settings of the space that the seed draws, one after the other on one device, at reduced length. Device
seconds are those of the trainings themselves; the sweep shares its expert and stops trials early.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.config import Config, load_config, override
from raydelta.search_space import SPACES
from raydelta.training.job import make_job
from raydelta.training.run import train_here
from raydelta.training.stage import read_stage
from raydelta.tuning.tune import tune


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--space", default="laptop")
    parser.add_argument("--expert-steps", type=int, default=100)
    parser.add_argument("--translator-steps", type=int, default=60)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    steps = [f"expert.steps={options.expert_steps}", f"translator.steps={options.translator_steps}"]
    report = max(1, options.translator_steps // 10)
    overrides = [*steps, f"compute.report_every={report}", *options.overrides]
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        tree = yaml.safe_load((SPACES / f"{options.space}.yaml").read_text())
        space.write_text(yaml.safe_dump(tree | {"concurrent": 1, "table": {"methods": ["guided"]}}))
        outcome = tune(str(space), overrides, runs=Path(folder) / "sweep")
        trials = json.loads((outcome.directory / "trials.json").read_text())
        config = load_config(file=outcome.config)
        expert = next((Path(folder) / "sweep").glob("expert-*"))
        ours = seconds_of(expert) + sum(trial["device_seconds"] for trial in trials)
        torch.set_num_threads(1)
        naive = [train_naively(config, trial["overrides"], Path(folder) / str(n)) for n, trial in enumerate(trials)]
    best = max(naive, key=lambda trial: trial["miou"])
    chosen = naive[[trial["overrides"] for trial in trials].index(outcome.best)]
    theirs = sum(trial["device_seconds"] for trial in naive)
    rows = [("sweep", ours, chosen["miou"]), ("naive loop", theirs, best["miou"])]
    print_table(("", "device s", "best mIoU"), rows)
    print(f"{ours / theirs:.2f} of the device time; the same best trial: {'yes' if chosen is best else 'no'}")
    result = {"machine": describe_machine(), "options": vars(options), "sweep": trials, "naive": naive}
    ratios = {"naive_by_sweep": theirs / ours}
    write_json(options.json, result | {"same_best": chosen is best, "seconds": [ours, theirs], "ratios": ratios})


def train_naively(config: Config, overrides: dict[str, Any], runs: Path) -> dict[str, Any]:
    """One setting as a script would train it: the expert first, then the translator to its last step."""
    expert = make_job("expert", config, runs)
    train_here(expert)
    job = make_job("translator", override(config, overrides), runs, expert.directory)
    train_here(job)
    stage = read_stage(job.directory)
    assert stage is not None
    seconds = seconds_of(expert.directory) + seconds_of(job.directory)
    return {"overrides": overrides, "miou": stage["metrics"]["miou"], "device_seconds": seconds}


def seconds_of(directory: Path) -> float:
    """Device seconds of a finished training."""
    stage = read_stage(directory)
    assert stage is not None
    return float(stage["metrics"]["device_seconds"])


if __name__ == "__main__":
    main()
