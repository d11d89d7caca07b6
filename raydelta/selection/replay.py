"""Labelling replayed on photographs whose labels are known: which strategy needs the fewest labels.

Every strategy begins with the same seeded labels. A round chooses with the last training of the table's first method,
adds the labels and trains it anew, or a translator with ``replay.steps`` on from its weights. The rounds of all
strategies and seeds run side by side on Ray. Each training is a stage, so a replay that was stopped goes on where it
was. No label is read before it is bought, and no test image before all is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from raydelta.config import Config, override
from raydelta.data.labels import choose_labels, count_bought
from raydelta.data.shards import list_ids
from raydelta.data.streams import load_images
from raydelta.errors import UserError
from raydelta.parsing import flatten
from raydelta.recipes import METHODS, MethodName
from raydelta.results.pictures import strip
from raydelta.search_space import ReplayConfig
from raydelta.selection.files import bought_then
from raydelta.selection.select import check_count, choose, default_grid
from raydelta.training.job import Job, label_ids, make_job

SHOWN = 8  # choices of each strategy in the picture

PARTNER: MethodName = "joint training"
"""The student of a committee."""


def replay(
    settings: ReplayConfig,
    seeds: Sequence[int],
    methods: Sequence[MethodName],
    config: Config,
    expert: Job,
    train: Callable[[Sequence[Job]], None],
) -> list[tuple[str, Job]]:
    """Everything that is to be evaluated, trained: each method with the labels of each round, strategy and seed.

    Args:
        train: trains jobs to their end, side by side.

    Raises:
        UserError: there are too few labels, or the windows leave too few photographs.
    """
    chains: dict[tuple[str, int], list[Job]] = {}
    fields = flatten(config.model_dump())
    plain = {key: fields[key] for key in METHODS[methods[0]].overrides}
    for seed in seeds:
        first = begin(methods[0], override(config, {"seed": seed, "labels.budget": settings.budgets[0]}), expert)
        chains |= {(strategy, seed): [first] for strategy in settings.strategies}
    for previous, budget in pairwise((0, *settings.budgets)):
        if previous:
            partners = [chain[-1] for (strategy, _), chain in chains.items() if strategy == "committee"]
            if partners:
                train([with_labels_of(job, PARTNER, plain, expert) for job in partners])
            for (strategy, _), chain in chains.items():
                chain.append(buy(chain[-1], strategy, budget, settings, expert))
        train(list({chain[-1].directory: chain[-1] for chain in chains.values()}.values()))
    return [
        (f"{method}, {strategy}", with_labels_of(job, method, plain, expert))
        for (strategy, _), chain in chains.items()
        for job in chain
        for method in methods
    ]


def begin(method: MethodName, config: Config, expert: Job) -> Job:
    """The training that every strategy starts from, on the seeded labels."""
    labelled = [(name, sequence) for name, sequence, known in list_ids(config.data.real, "train") if known]
    train, validation = choose_labels(labelled, config.labels, config.seed, config.labels.budget)
    bought = {"labels.ids": {"train": train, "validation": validation}}
    made_of = METHODS[method]
    at = override(config, bought | dict(made_of.overrides))
    return make_job(made_of.kind, at, expert.directory.parent, expert.directory)


def buy(job: Job, strategy: str, budget: int, settings: ReplayConfig, expert: Job) -> Job:
    """The next round of a training: the labels it would choose, up to a budget, on top of its own.

    A strategy for cells buys as many pixels as whole images would have.
    """
    grid, had = default_grid(job, strategy), job.config.labels.ids
    count = round((budget - count_bought(label_ids(job)[0], had.cells if had else None)) * grid[0] * grid[1])
    check_count(job, count, grid)
    choices, _ = choose(job, count, strategy, grid=grid, window=settings.window)
    if not all(choice.labelled for choice in choices):
        raise UserError(
            f"{job.config.data.real}: a replay buys labels that are known, and not every photograph has one"
        )
    ids = bought_then(job, choices, None if grid == (1, 1) else grid)
    fields = {"labels.ids": ids, "labels.budget": len(ids["train"])}
    if settings.steps is not None:
        fields |= {"translator.start": job.directory.name, "translator.steps": settings.steps}
    return make_job(job.kind, override(job.config, fields), expert.directory.parent, expert.directory)


def with_labels_of(job: Job, method: MethodName, plain: Mapping[str, Any], expert: Job) -> Job:
    """A method of the table trained on the labels that another training has bought.

    Args:
        plain: the fields that set the method of ``job`` apart, as the replay's config has them.
    """
    made_of = METHODS[method]
    config = override(job.config, dict(plain) | dict(made_of.overrides))
    return make_job(made_of.kind, config, expert.directory.parent, expert.directory)


def draw_choices(settings: ReplayConfig, jobs: Sequence[tuple[str, Job]], path: Path) -> None:
    """The first photographs that each strategy has bought, of the first seed: a row each."""
    rows, captions = [], []
    for name in settings.strategies:
        ((_, job), *_) = [
            each
            for each in jobs
            if each[0].endswith(f", {name}") and each[1].config.labels.budget > settings.budgets[0]
        ]
        ids = label_ids(job)[0][settings.budgets[0] :][:SHOWN]
        data = job.config.data
        pixels = load_images(data.real, "train", data.size, labels=False, ids=ids).pixels
        rows.append(
            list(
                np.concatenate([pixels, np.full_like(pixels[:1].repeat(SHOWN - len(ids), 0), 255)]).transpose(
                    0, 2, 3, 1
                )
            )
        )
        captions.append(f"{name}: {', '.join(ids)}")
    strip(rows, [f"{number}." for number in range(1, SHOWN + 1)], path, captions)
