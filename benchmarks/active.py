"""Replay labelling on a data set whose labels are known: mIoU over the number of labels, per strategy, with its spread.

    python -m benchmarks.active [--real DATA] [--strategies combined random] [--seeds 0 1 2] [--start 8] [--add 8]
                                [--rounds 3] [--window 5] [--runs DIR] [--json FILE] [a.b=c ...]

Every strategy starts from the same seeded labels; a round selects with the last translator, adds the labels and trains
anew. A selection reads no label, and no test image is looked at before every round of every strategy is trained.
Trainings are stages: a replay that was stopped goes on where it was.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.advice import advise
from raydelta.cluster import ensure_ray, warm_up
from raydelta.config import Config, load_config, override
from raydelta.data.prepare import evaluation_split, prepare_data
from raydelta.data.shards import list_ids, read_manifest
from raydelta.errors import UserError
from raydelta.evaluation import spread_of
from raydelta.labels import choose_labels
from raydelta.progress import Progress
from raydelta.selection import WINDOW, check_count, choose
from raydelta.strategies import STRATEGIES, find_strategy
from raydelta.table import evaluate_on_ray
from raydelta.tuning import train_translator


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", default="street")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--start", type=int, default=8)
    parser.add_argument("--add", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--preset", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json")
    options, overrides = parser.parse_known_args()
    for name in options.strategies:
        find_strategy(name)
    cluster = ensure_ray()
    warm_up()
    preset = options.preset or ("gpu" if cluster.gpus else "laptop")
    config = prepare_data(load_config(preset, None, [f"data.real={options.real}", *overrides]), options.runs.resolve())
    if evaluation_split(read_manifest(config.data.real)) is None:
        raise UserError(f"{config.data.real}: has no labelled test or val split to measure on")
    chains = {
        (name, seed): replay(config, name, seed, options) for seed in options.seeds for name in options.strategies
    }
    rows = evaluate(chains, cluster.gpus > 0)
    machine = describe_machine()
    settings = {key: value for key, value in vars(options).items() if key not in ("runs", "json")}
    write_json(options.json, {"machine": machine, "options": settings | {"overrides": overrides}, "rows": rows})
    print_table(["labels", *options.strategies], tabulate(rows, options.strategies))
    if options.rounds > 1 and len(options.seeds) > 1:
        for name in options.strategies:
            measured = [(row["labels"], row["miou"]) for row in rows if row["strategy"] == name]
            print(f"{name}: {advise(measured)}")


def replay(config: Config, strategy: str, seed: int, options: Any) -> list[Any]:
    """The translators of one strategy and seed, one after each round and one before the first."""
    runs = options.runs.resolve()
    at = override(config, {"seed": seed, "labels.budget": options.start, "labels.ids": None})
    labelled = [(name, sequence) for name, sequence, known in list_ids(config.data.real, "train") if known]
    bought, validation = choose_labels(labelled, at.labels, seed)
    jobs = []
    for turn in range(options.rounds + 1):
        ids = {"train": bought, "validation": validation}
        job = train_translator(override(at, {"labels.ids": ids, "labels.budget": len(bought)}), runs)
        jobs.append(job)
        if turn < options.rounds:
            check_count(job, options.add, (1, 1))
            choices, _ = choose(job, options.add, strategy, window=options.window)
            bought = [*bought, *(choice.id for choice in choices)]
    return jobs


def evaluate(chains: dict[tuple[str, int], list[Any]], gpu: bool) -> list[dict[str, Any]]:
    """mIoU on the test split after every round; the strategies of a seed share their first translator."""
    jobs = {job.directory.name: job for chain in chains.values() for job in chain}
    progress = Progress("evaluation")
    rows = evaluate_on_ray(list(jobs.items()), float(gpu), progress)
    progress.finish(f"{len(jobs)} translators")
    split = evaluation_split(read_manifest(next(iter(jobs.values())).config.data.real))
    miou = {row.method: row.miou for row in rows if row.split == split}
    return [
        {
            "strategy": strategy,
            "seed": seed,
            "labels": job.config.labels.budget,
            "validation_labels": job.config.labels.validation,
            "miou": miou[job.directory.name],
            "ids": list(job.config.labels.ids.train),
        }
        for (strategy, seed), chain in chains.items()
        for job in chain
    ]


def tabulate(rows: list[dict[str, Any]], strategies: list[str]) -> list[list[str]]:
    """A line per number of labels: mean and sample standard deviation over the seeds, per strategy."""
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in rows:
        cells[row["labels"], row["strategy"]].append(row["miou"])
    return [
        [str(labels), *(spread_of(cells[labels, name]) for name in strategies)]
        for labels in sorted({row["labels"] for row in rows})
    ]


if __name__ == "__main__":
    main()
