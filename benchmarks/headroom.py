"""What choosing labels can bring: how far apart label sets are, how far apart seeds are, and where strategies lie.

    python -m benchmarks.headroom DATA SIMULATED [--sets 16] [--seeds 3] [--budget 14] [--strategies stride typical]
                                  [--json FILE] [a.b=c ...]

Like `raydelta select --headroom`, but every set is trained with every seed. So the spread of the sets can be told from
that of the seeds, which the best of all sets contains too. Strategies choose with an unguided translator of one step,
which hardly changes an image: they see what the expert sees. `spread` is the order in which raydelta takes labels when
none are named: drives in turn. All happens in this process, without Ray. What is trained is not trained again; the
result is written after each seed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.config import Config, load_config, override
from raydelta.data.labels import order_labels
from raydelta.data.shards import list_ids
from raydelta.data.streams import load_images
from raydelta.recipes import METHODS
from raydelta.results.evaluate import evaluate_job
from raydelta.selection.batch import choose_typical
from raydelta.selection.headroom import METHOD, expected_maximum, explain
from raydelta.selection.scoring import Scorer
from raydelta.selection.select import choose
from raydelta.training.job import Job, make_job
from raydelta.training.run import train_here

SETTINGS = {
    "labels.validation": 0,
    "segmenter.architecture": "lean",
    "expert.steps": 1000,
    "expert.ema": 0.99,
    "translator.steps": 1,
    "guidance.weight": 0.0,
    "student.steps": 300,
    "compute.report_every": 100,
    "compute.checkpoint_every": 1000,
}
SPREAD = "spread"


@dataclass(frozen=True)
class Spread:
    """A random-effects analysis of mIoU over sets and seeds, in points."""

    mean: float
    between_sets: float  # standard deviation of what a set is worth, the seeds' share taken out
    between_seeds: float  # standard deviation of one training of a given set
    best: float  # best set less the mean, of means over the seeds
    by_seeds_alone: float  # what that would be if all sets were worth the same
    headroom: float  # best of so many sets less the mean, the seeds' share taken out


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("simulated")
    parser.add_argument("--sets", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=14)
    parser.add_argument("--strategies", nargs="*", default=[SPREAD, "stride", "typical"])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json")
    options, overrides = parser.parse_known_args()
    sets = {"data.real": str(Path(options.data).resolve()), "data.synthetic": str(Path(options.simulated).resolve())}
    config = override(load_config(overrides=SETTINGS), sets | dict(each.split("=", 1) for each in overrides))
    expert = make_job("expert", config, options.runs)
    train_here(expert)
    chosen = {
        f"random {number}": {0: ids} for number, ids in enumerate(random_sets(config, options.budget, options.sets))
    }
    for name in options.strategies:
        chosen[name] = {seed: strategy_set(config, expert, name, options.budget, seed) for seed in range(options.seeds)}
    mious: dict[str, list[float]] = {name: [] for name in chosen}
    for seed in range(options.seeds):
        for name, by_seed in chosen.items():
            job = training(config, expert, by_seed.get(seed, by_seed[0]), seed)
            train_here(job)
            mious[name].append(evaluate_job(METHOD, job)[0].miou)
            print(f"seed {seed}  {name:<12} {mious[name][-1]:6.2f}", flush=True)
        result = sum_up(mious, options.sets)
        whole = [by_seed[0] for name, by_seed in chosen.items() if name.startswith("random ")]
        means = [mean(mious[f"random {number}"]) for number in range(options.sets)]
        explained = explain(training(config, expert, whole[0], 0), whole, means) if whole else []
        content = {
            "machine": describe_machine(),
            "options": vars(options) | {"simulated": None, "overrides": overrides},
        }
        write_json(
            options.json,
            content | result | {"explained": [each.model_dump() for each in explained], "sets": chosen, "mious": mious},
        )
    print_table(("quantity", "points"), list(result["random"].items()))
    print_table(
        ("strategy", "mIoU", "to random", "deviation"),
        [(name, *row.values()) for name, row in result["strategies"].items()],
    )
    print(*explained, sep="\n")


def random_sets(config: Config, budget: int, count: int) -> list[list[str]]:
    """Sets that are drawn without regard to drives."""
    names = sorted(sample.id for sample in list_ids(config.data.real, "train") if sample.labelled)
    random = np.random.default_rng([config.seed, 0x4EAD])
    return [[names[index] for index in random.choice(len(names), budget, replace=False)] for _ in range(count)]


def strategy_set(config: Config, expert: Job, strategy: str, budget: int, seed: int) -> list[str]:
    """What a strategy would label first."""
    if strategy == SPREAD:
        return order_labels([(sample.id, sample.sequence) for sample in list_ids(config.data.real, "train")], seed)[
            :budget
        ]
    start = make_job("translator", override(config, {"seed": seed}), expert.directory.parent, expert.directory)
    train_here(start)
    if strategy != "typical":
        return [choice.id for choice in choose(start, budget, strategy)[0]]
    photographs = load_images(config.data.real, "train", config.data.size, labels=False)
    seen = Scorer(start, strategy, (1, 1))({"id": np.array(photographs.ids), "pixels": photographs.pixels})
    return [photographs.ids[row] for row, _ in choose_typical(seen["features"], (), budget, seed)]


def training(config: Config, expert: Job, names: Sequence[str], seed: int) -> Job:
    """Joint training with a label set."""
    ids = {"train": list(names), "validation": []}
    fields = {"labels.ids": ids, "labels.budget": len(names), "seed": seed}
    return make_job(METHODS[METHOD].kind, override(config, fields), expert.directory.parent, expert.directory)


def sum_up(mious: Mapping[str, Sequence[float]], sets: int) -> dict[str, Any]:
    """The spread of the random sets, and each strategy against their mean, or against `random`, paired by seed."""
    values = np.array([mious[f"random {number}"] for number in range(sets)] or [mious["random"]])
    by_seed = values.mean(0)
    strategies = {}
    for name, found in mious.items():
        if not name.startswith("random "):
            gains = (np.array(found) - by_seed).tolist()
            strategies[name] = {
                "miou": mean(found),
                "to_random": mean(gains),
                "deviation": stdev(gains) if len(gains) > 1 else None,
            }
    return {"random": asdict(analyse(values)) if min(values.shape) > 1 else {}, "strategies": strategies}


def analyse(values: np.ndarray) -> Spread:
    """Split the spread of mIoU (sets, seeds) into that of the sets and that of the seeds.

    A seed's mean over the sets is taken out first: it is common to all that is compared.
    """
    sets, seeds = values.shape
    centred = values - values.mean(0) + values.mean()
    means = centred.mean(1)
    within = float(((centred - means[:, None]) ** 2).sum() / ((sets - 1) * (seeds - 1)))
    between = float(means.var(ddof=1))
    of_sets = max(0.0, between - within / seeds) ** 0.5
    most = expected_maximum(sets)
    return Spread(
        mean=float(values.mean()),
        between_sets=of_sets,
        between_seeds=within**0.5,
        best=float(means.max() - means.mean()),
        by_seeds_alone=most * (within / seeds) ** 0.5,
        headroom=most * of_sets,
    )


if __name__ == "__main__":
    main()
