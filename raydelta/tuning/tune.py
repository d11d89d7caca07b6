"""The main job: data, expert, sweep, table, pictures, report. Validation labels alone choose the best trial."""

import itertools
import json
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydelta.compute.cluster import Cluster, choose_preset, ensure_ray, warm_up
from raydelta.config import Config, flatten, load_config, override, parse_override, save_config, without_tracking
from raydelta.data.prepare import check_data, evaluation_split, prepare_data
from raydelta.data.shards import read_manifest
from raydelta.errors import UserError
from raydelta.progress import Progress
from raydelta.results.recommend import recommend
from raydelta.results.sweep import Sweep, record_sweep
from raydelta.results.table import Row, write_table
from raydelta.search_space import Space, load_space, within_labels
from raydelta.storage import fingerprint, write_atomically
from raydelta.tuning import trackers
from raydelta.tuning.best import write_best
from raydelta.tuning.callbacks import tell_results
from raydelta.tuning.single import train_expert
from raydelta.tuning.trials import Trainer, job_of, trial_resources

if TYPE_CHECKING:
    pass


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


def run_tune(
    space_name: str = "laptop",
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    config_file: Path | None = None,
    runs: Path = Path("runs"),
    resume: bool = False,
    announce: Any = lambda cluster, preset: None,
) -> Outcome:
    """The main job: make or open the data, train the expert once, sweep the translator, compare, draw.

    Args:
        preset: ``laptop`` or ``gpu``; None takes ``gpu`` where the cluster has one.
        resume: continue a sweep that was stopped, with what its scheduler and search know; else it is begun anew, but
            no training is: finished ones stay, unfinished ones go on from their last checkpoint.
        announce: called with the cluster and the preset before the work starts.

    Raises:
        UserError: bad input, or no trial succeeded.
    """
    space = load_space(space_name)
    given = dict(map(parse_override, overrides))
    config = load_config(preset or "laptop", config_file, space.config | given)  # complains, if at all, now
    tracking = config.tracking
    trackers.check_trackers(tracking)
    check_data(config)
    for key in set(given) & set(space.search):
        raise UserError(f"{key} is searched by the space {space_name!r}; remove the override or the dimension")
    cluster = ensure_ray()
    preset = choose_preset(preset, cluster)
    announce(cluster, preset)
    warm_up()
    trial_resources(space, cluster)
    config = load_config(preset, config_file, space.config | given)
    runs = runs.resolve()
    config = without_tracking(prepare_data(config, runs))
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
            stacklevel=2,
        )
    shown = [override for override in overrides if not override.startswith("tracking.")]  # may name a server, or a key
    arguments = [space_name, *shown, "--preset", preset, "--runs", str(runs)]
    command = shlex.join(["raydelta", "tune", *arguments, *(["--config", str(config_file)] if config_file else [])])
    with trackers.open_trackers(tracking, runs):
        expert = train_expert(config, runs)
        return _sweep_and_compare(space, Path(space_name).stem, config, expert, runs, cluster, resume, command)


def _sweep_and_compare(
    space: Space, name: str, config: Config, expert: Any, runs: Path, cluster: Cluster, resume: bool, command: str
) -> Outcome:
    from raydelta.data.streams import is_streamed, share_cpus
    from raydelta.recipes import METHODS
    from raydelta.results.evaluate import evaluate_on_ray
    from raydelta.results.gallery import draw_gallery, draw_strips
    from raydelta.results.label_curve import sum_up
    from raydelta.results.report import write_report
    from raydelta.selection.replay import draw_choices, replay
    from raydelta.training.assemble import open_large_sets
    from raydelta.training.job import Job, make_job, record_methods

    config = override(config, {"compute.workers": space.resources.workers})
    decides = config.model_dump(mode="json", exclude={"tracking"})
    directory = runs / f"tune-{name}-{fingerprint([space.model_dump(), decides])}"
    trackers.start(trackers.Run(directory.name, "tune", {"space": name} | flatten(decides)))
    large = open_large_sets(make_job("translator", config, runs, expert.directory))
    resources, concurrent = trial_resources(space, cluster)
    streamed = [rows for rows in large.values() if is_streamed(rows)]
    if streamed:  # workers that reserve every CPU would starve Ray Data for ever
        resources["CPU"] = resources["CPU"] / 2
        share_cpus(streamed * concurrent, cluster.cpus - resources["CPU"] * space.resources.workers * concurrent)
    elif space.resources.workers == 1 and space.algorithm == "random":
        # Not drivers of several workers, which take no place, nor what Optuna draws, which has to know the last ones.
        concurrent = space.concurrent or 0
    train = Trainer(config, expert.directory, runs, large, resources, concurrent, space, directory.name)
    record_sweep(directory, Sweep(command=command, space=space, config=config, expert=expert.directory.name))

    results = train.sweep(directory / "sweep", resume) if space.search else []
    best = _best_of(results) if space.search else None
    if best is not None:
        write_atomically(directory / "trials.json", json.dumps(results, indent=1))
    chosen = override(config, best["overrides"]) if best is not None else config

    seeds = space.table.seeds or (chosen.seed,)
    jobs: list[tuple[str, Job]] = [("synthetic only", expert)]
    if space.replay is not None:
        jobs += replay(
            space.replay, seeds, space.table.methods, override(chosen, {"labels.ids": None}), expert, train.finish
        )
    else:
        for seed, budget in itertools.product(seeds, space.table.budgets or [chosen.labels.budget]):
            at = override(chosen, {"seed": seed, "labels.budget": budget})
            for name in space.table.methods:
                method = METHODS[name]
                jobs.append((name, make_job(method.kind, override(at, method.overrides), runs, expert.directory)))
    # Some do not depend on the budget.
    jobs = list({(method, job.directory): (method, job) for method, job in jobs}.values())
    for wave in in_waves([job for _, job in jobs]):
        train.finish(wave)

    progress = Progress("evaluation")
    gpus = resources.get("GPU", float(cluster.gpus > 0))
    rows = evaluate_on_ray(jobs, gpus, progress)
    progress.finish(f"{len(rows)} rows")
    directory.mkdir(parents=True, exist_ok=True)
    write_table(directory, rows)
    by_method = dict(jobs)
    pictures = directory / "strips.png"
    findings = []
    if space.replay is not None:
        findings = sum_up(space.replay, space.table.methods, rows)
        draw_choices(space.replay, jobs, pictures)
    elif "guided" in by_method:
        draw_strips([by_method[name] for name in DRAWN if name in by_method], pictures, gpus)
    record_methods(directory, chosen, runs)
    save_config(override(chosen, {"compute.workers": None}), directory / "best.yaml")
    try:
        write_best(directory, [job for _, job in jobs], recommend(rows).overall)
    except Exception as error:  # hours of training are not lost over a copy
        warnings.warn(f"{directory}: no best/, the results are whole: {error}", stacklevel=2)
    report = None
    try:
        report = write_report(directory, lambda job: draw_gallery(job, gpus))
    except Exception as error:  # hours of training are not lost over a page
        again = f"raydelta report {directory}"
        warnings.warn(f"{directory}: no report, the results are whole; try {again}: {error}", stacklevel=2)
    settings = [{"kind": "translator"} | result for result in results if result["error"] is None]
    trials = [job_of(each, config, expert.directory, runs) for each in settings]
    tell_results(directory, config, [*trials, *(job for _, job in jobs)], rows, best, gpus)
    return Outcome(
        directory=directory,
        rows=rows,
        best=best["overrides"] if best else None,
        best_miou=best["miou"] if best else None,
        config=directory / "best.yaml",
        findings=findings,
        failed=[f"{result['overrides']}: {result['error']}" for result in results if result["error"]],
        pictures=pictures if pictures.exists() else None,
        report=report,
    )


def _best_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    finished = [result for result in results if result["miou"] is not None]
    if not finished:
        reasons = {result["error"] for result in results if result["error"]}
        raise UserError(
            "no trial of the sweep has a validation mIoU: "
            + ("; ".join(sorted(reasons)) or "labels.validation must be at least 1, and the real set needs labels")
        )
    return max(finished, key=lambda result: result["miou"])


def in_waves(jobs: Sequence[Any]) -> list[list[Any]]:
    """The jobs and all they build on, but for the expert, in waves: every job's parents are in an earlier one."""
    waves: dict[int, dict[Path, Any]] = {}
    for job in jobs:
        for each in [*job.parents, job]:
            if each.kind != "expert" and not each.recipe.members:
                waves.setdefault(_depth(each), {})[each.directory] = each
    return [list(waves[depth].values()) for depth in sorted(waves)]


def _depth(job: Any) -> int:
    return 1 + max((_depth(parent) for parent in job.parents), default=0)
