"""``raydelta tune --dry-run``: what the command would train and about how long it would take."""

import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from raydelta.config import Config, load_config, override
from raydelta.progress import Progress, clock
from raydelta.recipes import RECIPES
from raydelta.results.evaluate import method_of
from raydelta.results.sweep import TRIALS, read_trials
from raydelta.search_space import ReplayConfig, Space
from raydelta.training.job import BEST, Job, make_job
from raydelta.training.on_ray import train_on_ray
from raydelta.training.stage import read_stage
from raydelta.tuning.halving import expect_steps, make_milestones
from raydelta.tuning.start import Announce
from raydelta.tuning.trials import trial_resources
from raydelta.tuning.tune import in_waves, list_rows, name_sweep, open_task, seeded_experts

TIMED_STEPS = 6
WARM_UP = 3
"""Of the timed steps, so many come before the pace is taken: a first step compiles and allocates."""


class Planned(BaseModel):
    """Trainings of one kind."""

    name: str  # a row of the table, or ``search``
    trainings: int
    finished: int | None  # of these, already; None: the search decides their settings, and it is not finished
    steps: int  # of what is left, all trainings together
    seconds: float  # of one device for what is left


class Outlook(BaseModel):
    """What a sweep would train."""

    directory: str
    parts: list[Planned]
    at_once: int  # trainings side by side
    seconds: float  # until the last one ends; evaluation, pictures and report come on top

    def lines(self) -> list[str]:
        """A table for a terminal."""
        lines = [f"{'training':<28}{'count':>7}{'finished':>10}{'steps left':>12}{'device time':>13}"]
        for part in self.parts:
            finished = "" if part.finished is None else part.finished
            lines.append(f"{part.name:<28}{part.trainings:>7}{finished:>10}{part.steps:>12,}{clock(part.seconds):>13}")
        together = f", up to {self.at_once} at once" if self.at_once > 1 else ""
        lines += ["", f"expected     {clock(self.seconds)} of training{together}; then evaluation, pictures and report"]
        return lines


class Pace(NamedTuple):
    """Seconds of a step and of a validation."""

    step: float
    validation: float

    def seconds(self, job: Job, steps: int) -> float:
        """Of so many steps of a training, on one device."""
        return steps * self.step + math.ceil(steps / job.config.compute.report_every) * self.validation


def look_ahead(
    space: str = "laptop",
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    config_file: str | Path | None = None,
    runs: str | Path = "runs",
    announce: Announce = lambda cluster, preset: None,
) -> Outlook:
    """Check all that ``tune`` with the same arguments needs, make its data, and time a few steps of each training.

    The data is made where ``tune`` finds it. The timed steps have a folder of their own, which is removed.

    Raises:
        UserError: as ``tune``.
    """
    task = open_task(space, overrides, preset, config_file, runs, announce)
    asked, expert = task.space, make_job("expert", task.config, task.runs)
    directory, sweep = name_sweep(task, expert)
    best = directory / BEST
    config = load_config(file=best) if best.exists() else _any_of(asked, sweep.config)
    trial = make_job("translator", config, task.runs, expert.directory)
    experts = seeded_experts(asked, config, expert)
    more = [job for job in experts.values() if job.directory != expert.directory]
    rows = [job for _, job in list_rows(asked, config, experts)]
    waves = in_waves(rows)
    paces = time_steps([trial, *(job for wave in waves for job in wave)], expert, task.runs, directory.name)
    _, at_once = trial_resources(asked, task.cluster)

    known = best.exists() or not (asked.search or asked.replay)
    parts = [_plan_jobs([expert, *more], paces, known=True)]
    seconds = _seconds_left(expert, paces, known=True)
    if asked.search:
        parts.append(_plan_search(asked, trial, directory, paces[method_of(trial)]))
        seconds += parts[-1].seconds / at_once
    rounds = _rounds(asked.replay) if asked.replay else 1
    for wave, trained in ((more, True), *((wave, known) for wave in waves)):
        left = [_seconds_left(job, paces, trained) for job in wave]
        seconds += max(rounds * sum(left) / at_once, *left, 0.0)
    by_method = defaultdict(list)
    for job in (job for wave in waves for job in wave):
        by_method[method_of(job)].append(job)
    parts += [_plan_jobs(jobs * rounds, paces, known) for jobs in by_method.values()]
    return Outlook(directory=str(directory), parts=parts, at_once=at_once, seconds=seconds)


def _any_of(space: Space, config: Config) -> Config:
    """A config as a trial may have it: how long a training takes hardly depends on what is searched."""
    return override(config, {key: dimension.corners()[-1] for key, dimension in space.search.items()})


def _rounds(settings: ReplayConfig) -> int:
    """How often a replay trains every method, for each seed."""
    return 1 + len(settings.strategies) * (len(settings.budgets) - 1)


def _plan_search(space: Space, trial: Job, directory: Path, pace: Pace) -> Planned:
    trials = space.trials * math.prod(len(dimension.grid or [0]) for dimension in space.search.values())
    steps, every = trial.steps, trial.config.compute.checkpoint_every
    total = trials * steps
    if space.scheduler != "none":
        milestones = make_milestones(steps, space.grace, space.reduction, every)
        total = expect_steps(trials, [*milestones, steps], space.reduction)
    known = read_trials(directory)
    ended = [each for each in known if each.ended and each.error is None]
    left = 0 if (directory / TRIALS).exists() else max(0, total - sum(each.step for each in known))
    return Planned(
        name="search (guided)", trainings=trials, finished=len(ended), steps=left, seconds=pace.seconds(trial, left)
    )


def _plan_jobs(jobs: Sequence[Job], paces: dict[str, Pace], known: bool) -> Planned:
    """Trainings of one method."""
    left = [job for job in jobs if not (known and job.done)]
    return Planned(
        name="expert" if jobs[0].kind == "expert" else method_of(jobs[0]),
        trainings=len(jobs),
        finished=len(jobs) - len(left) if known else None,
        steps=sum(job.steps for job in left),
        seconds=sum(_seconds_left(job, paces, known) for job in left),
    )


def _seconds_left(job: Job, paces: dict[str, Pace], known: bool) -> float:
    return 0.0 if known and job.done else paces[method_of(job)].seconds(job, job.steps)


def time_steps(jobs: Sequence[Job], expert: Job, runs: Path, name: str) -> dict[str, Pace]:
    """The pace of each method, from a few steps of one training of it and of what it builds on.

    Args:
        name: of the folder for them in ``unfinished``, which is removed.

    Raises:
        UserError: a training cannot be put together, as where the labels are too few.
    """
    folder = runs / "unfinished" / f"timing-{name}"
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
    shortened: dict[str, int | None] = {f"{recipe.section}.steps": TIMED_STEPS for recipe in RECIPES.values()}
    shortened |= {"compute.report_every": WARM_UP, "compute.checkpoint_every": TIMED_STEPS, "translator.start": None}
    first = make_job("expert", override(expert.config, shortened), folder)
    distinct = {method_of(job): job for job in jobs}.values()
    shorter = [make_job(job.kind, override(job.config, shortened), folder, first.directory) for job in distinct]
    timed = [first, *(job for wave in in_waves(shorter) for job in wave)]
    progress, paces = Progress("timing"), dict[str, Pace]()
    try:
        for number, job in enumerate(timed):
            progress.update(number, len(timed), method_of(job))
            train_on_ray(job)
            stage = read_stage(job.directory)
            assert stage is not None
            paces[method_of(job)] = Pace(
                stage["metrics"]["step_seconds"], stage["metrics"].get("seconds_validate", 0.0)
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.finish(f"{TIMED_STEPS} steps each of {len(timed)} kinds of training")
    return paces
