"""Settings against each other at a small size, paired by seed, on validation labels: which of them pays.

    python -m benchmarks.ablation DATA SIMULATED "mean teacher" "mean teacher: self_training.weighting=share" …
                                  [--seeds 8] [--validation 100] [--set a.b=c …] [--json FILE]

Each is a row of the table, with fields that are changed. All are compared with the first. Training is that of `raydelta
tune active` (128×64, 300 steps), with 14 labels; every seed draws other labels. No test image is read. Put `oracle`
and `joint training` among them: what lies between these two is all that can be gained. All happens in this process,
without Ray. What is trained is not trained again; the result is written after each seed.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.config import Config, load_config, override
from raydelta.parsing import parse_override
from raydelta.recipes import METHODS, find_method
from raydelta.results.differences import format_difference
from raydelta.results.evaluate import device_hours
from raydelta.search_space import load_space
from raydelta.training.job import Job, make_job
from raydelta.training.run import train_here
from raydelta.training.stage import read_stage

Found = dict[str, list[tuple[float, float]]]
"""Setting → mIoU in percent and device minutes, by seed."""


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("simulated")
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], dest="common")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json")
    options = parser.parse_args()
    sets = {"data.real": str(Path(options.data).resolve()), "data.synthetic": str(Path(options.simulated).resolve())}
    fields = load_space("active").config | {"labels.validation": options.validation, "compute.report_every": 1000}
    config = load_config(overrides=fields | sets | dict(map(parse_override, options.common)))
    expert = make_job("expert", config, options.runs)
    train_here(expert)
    found: Found = {setting: [] for setting in options.settings}
    for seed in range(options.seeds):
        for setting, values in found.items():
            job = job_of(setting, override(config, {"seed": seed}), expert)
            for each in [*job.parents, job]:
                train_here(each)
            stage = read_stage(job.directory)
            assert stage is not None
            values.append((stage["metrics"]["miou"], device_hours(job) * 60))
            print(f"seed {seed}  {setting:<60} {values[-1][0]:6.2f}", flush=True)
        if seed:
            content = {"machine": describe_machine(), "options": vars(options) | {"simulated": None}}
            write_json(options.json, content | {"settings": sum_up(found)})
    rows = [(name, *list(row.values())[1:]) for name, row in sum_up(found).items()]
    print_table(("setting", "mIoU", "±", "to the first", "minutes"), rows)


def job_of(setting: str, config: Config, expert: Job) -> Job:
    """``mean teacher: a.b=c d.e=f`` → the row's training with these fields."""
    row, _, changes = setting.partition(":")
    method = METHODS[find_method(row.strip())]
    fields = dict(method.overrides) | dict(map(parse_override, shlex.split(changes)))
    return make_job(method.kind, override(config, fields), expert.directory.parent, expert.directory)


def sum_up(found: Found) -> dict[str, dict[str, Any]]:
    """Mean and deviation of each setting, its difference to the first, paired by seed, and device minutes."""
    first = [miou for miou, _ in next(iter(found.values()))]
    result = {}
    for setting, values in found.items():
        mious = [miou for miou, _ in values]
        result[setting] = {
            "mious": mious,
            "miou": mean(mious),
            "deviation": _deviation(mious),
            "to_first": format_difference(
                mean(paired := [a - b for a, b in zip(mious, first, strict=True)]), _deviation(paired), len(paired)
            ),
            "minutes": mean(minutes for _, minutes in values),
        }
    return result


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    main()
