"""The main job: data, expert, sweep, table, pictures, report. Validation labels alone choose the best trial."""

import itertools
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydelta.compute.cluster import Cluster
from raydelta.config import Config, TrackingConfig, override, save_config, without_tracking
from raydelta.data.prepare import evaluation_split, prepare_data
from raydelta.data.shards import read_manifest
from raydelta.data.streams import is_streamed, share_cpus
from raydelta.errors import UserError
from raydelta.parsing import flatten
from raydelta.progress import Progress
from raydelta.recipes import METHODS
from raydelta.results.evaluate import evaluate_on_ray
from raydelta.results.gallery import draw_gallery, draw_strips
from raydelta.results.label_curve import sum_up
from raydelta.results.recommend import recommend
from raydelta.results.report import write_report
from raydelta.results.row import Row
from raydelta.results.sweep import Sweep, Trial, best_of, record_sweep, sweep_directory, write_trials
from raydelta.results.table import write_table
from raydelta.search_space import Space, open_space, within_labels
from raydelta.selection.replay import draw_choices, replay
from raydelta.storage.bucket import fetch, open_runs, publish
from raydelta.storage.files import shown
from raydelta.training.assemble import open_large_sets
from raydelta.training.job import Job, make_job, record_methods
from raydelta.training.on_ray import share
from raydelta.tuning import trackers
from raydelta.tuning.best import write_best
from raydelta.tuning.callbacks import tell_results
from raydelta.tuning.searchers import check_searcher
from raydelta.tuning.single import train_expert
from raydelta.tuning.start import Announce, check_runs, export_own_code, start
from raydelta.tuning.trials import Trainer, trial_resources

DRAWN = ("unguided", "guided", "joint training", "student")
"""Methods whose pictures stand beside each other after a run."""


@dataclass(frozen=True)
class Outcome:
    """What the main job ends with."""

    directory: Path
    rows: list[Row]
    best: dict[str, Any] | None  # the searched fields of the best trial; None: nothing was searched
    best_miou: float | None  # on its validation labels, percent
    config: Path  # the whole of the best trial's config
    findings: list[str]  # sentences about the table
    failed: list[str]
    pictures: Path | None
    report: Path | None  # None: it could not be written, and a warning has said why
    results: Any  # Ray Tune's ResultGrid of the search; None: nothing was searched


def tune(
    space: str = "laptop",
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    config_file: str | Path | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    announce: Announce = lambda cluster, preset: None,
) -> Outcome:
    """The main job: make or open the data, train the expert once, sweep the translator, compare, draw.

    Args:
        space: a shipped search space by name, or a YAML file of one.
        overrides: ``section.field=value`` for a config field or one of the space (``trials=4``).
        preset: ``laptop`` or ``gpu``; None takes ``gpu`` where the cluster has one.
        config_file: YAML file with config fields, or its address.
        runs: output directory, or a bucket (``s3://bucket/runs``).
        resume: continue a sweep that was stopped, with what its scheduler and search know; else it is begun anew, but
            no training is: finished ones stay, unfinished ones go on from their last checkpoint.
        announce: called with the cluster and the preset before the work starts.

    Raises:
        UserError: bad input, or no trial succeeded.
    """
    task = open_task(space, overrides, preset, config_file, runs, announce)
    with trackers.open_trackers(task.tracking, task.runs):
        plan = _plan(task, train_expert(task.config, task.runs))
        found = _search(plan, resume)
        jobs = _train_rows(plan, found.config)
        rows = _evaluate(plan, jobs)
        return _conclude(plan, found, jobs, rows)


@dataclass(frozen=True)
class Task:
    """What was asked for, checked, with the data at hand."""

    name: str  # of the space
    space: Space
    config: Config
    tracking: TrackingConfig
    runs: Path
    cluster: Cluster
    command: str  # that does the same again


@dataclass(frozen=True)
class _Plan:
    """A sweep about to run."""

    space: Space
    config: Config  # under all trials
    directory: Path
    expert: Job
    train: Trainer
    gpus: float  # of one evaluation or picture


@dataclass(frozen=True)
class _Found:
    """What the search has found; with nothing to search, the config as it is."""

    config: Config
    trials: list[Trial]
    best: Trial | None
    results: Any


def open_task(
    name: str,
    overrides: Sequence[str],
    preset: str | None,
    config_file: str | Path | None,
    output: str | Path,
    announce: Announce,
) -> Task:
    """Check all that was asked for, start Ray, and make or import the data that is not there yet.

    Raises:
        UserError: bad input.
    """
    space, fields = open_space(name, overrides)
    check_searcher(space)
    runs = open_runs(output, write=True).resolve()
    check_runs(runs)
    fields = export_own_code(fields, runs)
    for key in set(fields) & set(space.search):
        raise UserError(f"{key} is searched by the space {name!r}; remove the override or the dimension")
    cluster, preset, config = start(fields, preset, config_file, announce, space.config)
    trial_resources(space, cluster)
    if space.search and (config.guidance.teacher is not None or "guidance.teacher" in space.search):
        raise UserError(
            "guidance.teacher: no trial trains a teacher first; search without it, and the row taught is trained with "
            "one after the search (table.methods)"
        )
    tracking, config = config.tracking, without_tracking(prepare_data(config, runs))
    real = read_manifest(config.data.real)
    if real.splits["train"].labelled == 0:
        raise UserError(
            f"{config.data.real}: a sweep needs labelled photographs, and the train split has none; label some, or run "
            "raydelta train translator guidance.weight=0 for plain CycleGAN"
        )
    space = within_labels(space, real.splits["train"].labelled - config.labels.validation)
    if space.search and config.labels.validation == 0:
        raise UserError("labels.validation = 0: a sweep needs at least one, they choose the best trial")
    if evaluation_split(real) is None:
        warnings.warn(
            f"{config.data.real} has no labelled test or val split: the table will have no rows for photographs",
            stacklevel=3,
        )
    named = [override for override in overrides if not override.startswith("tracking.")]  # may name a server, or a key
    arguments = [name, *named, "--preset", preset, "--runs", shown(runs)]
    command = shlex.join(["raydelta", "tune", *arguments, *(["--config", str(config_file)] if config_file else [])])
    return Task(Path(name).stem, space, config, tracking, runs, cluster, command)


def name_sweep(task: Task, expert: Job) -> tuple[Path, Sweep]:
    """The directory of the sweep, and what it is asked for."""
    config = override(task.config, {"compute.workers": task.space.resources.workers})
    sweep = Sweep(command=task.command, space=task.space, config=config, expert=expert.directory.name)
    data = read_manifest(config.data.real).name.removesuffix("-stand-in")
    return sweep_directory(task.runs, task.name, data, sweep), sweep


def _plan(task: Task, expert: Job) -> _Plan:
    """Name the sweep, open its data once for all trials, and divide the cluster."""
    space, cluster = task.space, task.cluster
    directory, sweep = name_sweep(task, expert)
    config = sweep.config
    decides = flatten(config.model_dump(mode="json", exclude={"tracking"}))
    trackers.start(trackers.Run(directory.name, "tune", {"space": task.name} | decides))
    large = open_large_sets(make_job("translator", config, task.runs, expert.directory))
    resources, concurrent = trial_resources(space, cluster)
    streamed = [rows for rows in large.values() if is_streamed(rows)]
    if streamed:  # workers that reserve every CPU would starve Ray Data for ever
        resources["CPU"] = resources["CPU"] / 2
        share_cpus(streamed * concurrent, cluster.cpus - resources["CPU"] * space.resources.workers * concurrent)
    elif space.resources.workers == 1 and space.algorithm == "random":
        # Not drivers of several workers, which reserve no CPU, nor what a searcher draws, which has to know the last.
        concurrent = space.concurrent or 0
    train = Trainer(config, expert.directory, task.runs, share(large), resources, concurrent, space, directory.name)
    record_sweep(directory, sweep)
    return _Plan(space, config, directory, expert, train, resources.get("GPU", float(cluster.gpus > 0)))


def _search(plan: _Plan, resume: bool) -> _Found:
    """Run the trials; the best one's fields go into the config of all that follows."""
    if not plan.space.search:
        return _Found(plan.config, [], None, None)
    results = plan.train.sweep(plan.directory / "sweep", resume)
    trials = plan.train.read(results)
    best = best_of(trials)
    if best is None:
        reasons = {trial.error for trial in trials if trial.error}
        raise UserError(
            "no trial of the sweep has a validation mIoU: "
            + ("; ".join(sorted(reasons)) or "labels.validation must be at least 1, and the real set needs labels")
        )
    write_trials(plan.directory, trials)
    return _Found(override(plan.config, best.overrides), trials, best, results)


def _train_rows(plan: _Plan, config: Config) -> list[tuple[str, Job]]:
    """The rows of the table, all trained: method and job."""
    space = plan.space
    if space.replay is not None:
        seeded = override(config, {"labels.ids": None})
        seeds = space.table.seeds or (config.seed,)
        chosen = replay(space.replay, seeds, space.table.methods, seeded, plan.expert, plan.train.finish)
        jobs = [("synthetic only", plan.expert), *chosen]
    else:
        experts = seeded_experts(space, config, plan.expert)
        plan.train.finish(list(experts.values()))
        jobs = list_rows(space, config, experts)
    # Some do not depend on the budget.
    jobs = list({(method, job.directory): (method, job) for method, job in jobs}.values())
    for wave in in_waves([job for _, job in jobs]):
        plan.train.finish(wave)
    return jobs


def seeded_experts(space: Space, config: Config, expert: Job) -> dict[int, Job]:
    """An expert for each seed of the table, so that ± is the spread of the whole way. A user's own network is one.

    Args:
        config: of the rows; the trials' expert may have other augmentation.
        expert: the one that the trials share.
    """
    seeds = space.table.seeds or (config.seed,)
    if expert.config.expert.model is not None or space.replay is not None:
        return dict.fromkeys(seeds, expert)
    fields = {"compute.workers": config.compute.workers}
    return {
        seed: make_job("expert", override(expert.config, {"seed": seed, **fields}), expert.directory.parent)
        for seed in seeds
    }


def list_rows(space: Space, config: Config, experts: Mapping[int, Job]) -> list[tuple[str, Job]]:
    """The rows of the table under a config: method and job.

    Args:
        experts: of each seed.
    """
    jobs: list[tuple[str, Job]] = [("synthetic only", expert) for expert in experts.values()]
    for (seed, expert), budget in itertools.product(experts.items(), space.table.budgets or [config.labels.budget]):
        at = override(config, {"seed": seed, "labels.budget": budget})
        for name in space.table.methods:
            method, runs = METHODS[name], expert.directory.parent
            jobs.append((name, make_job(method.kind, override(at, method.overrides), runs, expert.directory)))
    return jobs


def _evaluate(plan: _Plan, jobs: list[tuple[str, Job]]) -> list[Row]:
    progress = Progress("evaluation")
    rows = evaluate_on_ray(jobs, plan.gpus, progress)
    progress.finish(f"{len(rows)} rows")
    write_table(plan.directory, rows)
    return rows


def _conclude(plan: _Plan, found: _Found, jobs: list[tuple[str, Job]], rows: list[Row]) -> Outcome:
    """Pictures, the best config, the report; the trackers are told."""
    space, directory = plan.space, plan.directory
    pictures, findings = _draw(plan, jobs), []
    if space.replay is not None:
        findings = sum_up(space.replay, space.table.methods, rows)
    record_methods(directory, found.config, plan.expert.directory)
    save_config(override(found.config, {"compute.workers": None}), directory / "best.yaml")
    publish(directory / "best.yaml")
    try:
        write_best(directory, [job for _, job in jobs], recommend(rows).overall)
    except Exception as error:  # hours of training are not lost over a copy
        warnings.warn(f"{directory}: no best/, the results are whole: {error}", stacklevel=3)
    report = None
    try:
        report = write_report(directory, lambda job: draw_gallery(job, plan.gpus))
    except Exception as error:  # hours of training are not lost over a page
        again = f"raydelta report {shown(directory)}"
        warnings.warn(f"{directory}: no report, the results are whole; try {again}: {error}", stacklevel=3)
    trained = [*plan.train.jobs_of(found.trials), *(job for _, job in jobs)]
    tell_results(directory, plan.config, trained, rows, found.best.miou if found.best else None, plan.gpus)
    return Outcome(
        directory=directory,
        rows=rows,
        best=found.best.overrides if found.best else None,
        best_miou=found.best.miou if found.best else None,
        config=directory / "best.yaml",
        findings=findings,
        failed=[f"{trial.overrides}: {trial.error}" for trial in found.trials if trial.error],
        pictures=pictures,
        report=report,
        results=found.results,
    )


def _draw(plan: _Plan, jobs: list[tuple[str, Job]]) -> Path | None:
    """The strips of pictures beside the table, if there is anything to compare."""
    path, by_method = plan.directory / "strips.png", dict(jobs)
    if plan.space.replay is not None:
        draw_choices(plan.space.replay, jobs, path)
    elif "guided" in by_method:
        draw_strips([by_method[name] for name in DRAWN if name in by_method], path, plan.gpus)
    fetch(path)  # another machine has drawn it
    return path if path.exists() else None


def in_waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs and all they build on, but for the expert, in waves: every job's parents are in an earlier one."""
    waves: dict[int, dict[Path, Job]] = {}
    for job in jobs:
        for each in [*job.parents, job]:
            if each.kind != "expert" and not each.recipe.members:
                waves.setdefault(_depth(each), {})[each.directory] = each
    return [list(waves[depth].values()) for depth in sorted(waves)]


def _depth(job: Job) -> int:
    return 1 + max((_depth(parent) for parent in job.parents), default=0)
