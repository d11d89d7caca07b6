"""The sweep with Ray Tune, and the main job around it: data, expert, sweep, table, pictures.

A trial is one translator training that reports its validation
mIoU on the way; all trials share the expert and the images in the object store. Everything that finishes becomes a
stage, so a sweep that is run again repeats nothing. Selection looks at validation labels only.
"""

import itertools
import json
import re
import shlex
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raydelta import trackers
from raydelta.callbacks import show_progress, tell_results, tell_trackers
from raydelta.cluster import Cluster, choose_preset, ensure_ray, warm_up
from raydelta.config import Config, flatten, load_config, override, parse_override, save_config, without_tracking
from raydelta.data.prepare import evaluation_split, prepare_data
from raydelta.data.shards import read_manifest
from raydelta.errors import UserError
from raydelta.evaluation import Row, write_table
from raydelta.progress import Progress
from raydelta.spaces import Space, load_space
from raydelta.stages import fingerprint, read_stage, write_atomically
from raydelta.sweeps import Sweep, record_sweep

if TYPE_CHECKING:
    from raydelta.methods import Job

DRIVER = {"node:__internal_head__": 0.001}
"""What a trial reserves that only drives its workers: next to nothing, on the head node. Any share of a CPU would keep
the last worker from starting where workers need all CPUs."""


ROOM = "run fewer trials at once (`concurrent`), or take a smaller batch or network"

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
    tracking = load_config(preset or "laptop", config_file, space.config | given).tracking  # complains, if at all, now
    trackers.check_trackers(tracking)
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
    if space.search and config.labels.validation == 0:
        raise UserError("labels.validation = 0: a sweep needs at least one, they choose the best trial")
    if evaluation_split(real) is None:
        warnings.warn(
            f"{config.data.real} has no labelled test or val split: the table will have no rows for photographs",
            stacklevel=2,
        )
    arguments = [space_name, *overrides, "--preset", preset, "--runs", str(runs)]
    command = shlex.join(["raydelta", "tune", *arguments, *(["--config", str(config_file)] if config_file else [])])
    with trackers.open_trackers(tracking, runs):
        expert = train_expert(config, runs)
        return _sweep_and_compare(space, Path(space_name).stem, config, expert, runs, cluster, resume, command)


def train_expert(config: Config, runs: Path) -> "Job":
    """The expert's job, trained on the running Ray or a private one, unless the same one was trained before.

    Data sets are opened or made as ``prepare_data`` does.

    Raises:
        UserError: bad data or settings, or the cluster cannot give so many workers.
        TrainingError: a loss is not finite.
    """
    return _train("expert", config, runs)


def train_translator(config: Config, runs: Path) -> "Job":
    """One translator's job, trained after the expert, unless the same one was trained before.

    Raises:
        UserError: as ``train_expert``, or guidance is asked for without labels.
        TrainingError: a loss is not finite.
    """
    return _train("translator", config, runs)


def _train(kind: Literal["expert", "translator"], config: Config, runs: Path) -> "Job":
    ensure_ray()
    runs = runs.resolve()
    tracking, config = config.tracking, without_tracking(prepare_data(config, runs))
    with trackers.open_trackers(tracking, runs):
        expert = _train_one("expert", config, runs, None)
        return expert if kind == "expert" else _train_one(kind, config, runs, expert.directory)


def _train_one(kind: Literal["expert", "translator"], config: Config, runs: Path, expert: Path | None) -> "Job":
    from raydelta.methods import make_job
    from raydelta.workers import train_on_ray

    job = make_job(kind, config, runs, expert)
    name, progress = job.directory.name, Progress(kind)

    def on_report(metrics: dict[str, Any]) -> None:
        progress.update(metrics["step"], metrics["steps"], note_of(metrics))
        trackers.log(name, metrics)

    if not job.done:
        trackers.start(trackers.Run(name, kind, flatten(config.model_dump(mode="json"))))
        train_on_ray(job, on_report)
        trackers.end(name, ok=True)
    stage = read_stage(job.directory)
    assert stage is not None
    progress.finish(f"{stage['metrics']['step']} steps  {note_of(stage['metrics'])}  {job.directory.name}")
    return job


def note_of(metrics: dict[str, Any]) -> str:
    """The few figures of a training that fit a line of progress."""
    parts = []
    if "cross_entropy" in metrics:
        parts.append(f"loss {metrics['cross_entropy']:.2f}")
    if "miou" in metrics:
        parts.append(f"validation mIoU {metrics['miou']:.1f} %")
    parts.append(f"{metrics['images_per_second']:.0f} images/s")
    if metrics.get("gflops"):
        parts.append(f"{metrics['gflops']:.0f} GFLOP/s")
    parts.append(f"data wait {100 * metrics['data_wait']:.1f} %")
    return "  ".join(parts)


def trial_resources(space: Space, cluster: Cluster) -> tuple[dict[str, float], int]:
    """What a worker of a trial reserves, and how many trials fit the cluster as it is, or as the space limits them.

    Raises:
        UserError: the cluster can never give that.
    """
    wanted = space.resources
    gpus = wanted.gpus if wanted.gpus is not None else float(cluster.gpus > 0)
    if gpus * wanted.workers > cluster.gpus or wanted.workers * wanted.cpus > cluster.cpus:
        raise UserError(
            f"resources: a trial needs {wanted.workers * wanted.cpus} CPUs and {gpus * wanted.workers:g} GPUs, "
            f"but the cluster can give {cluster.cpus} CPUs and {cluster.gpus} GPUs at most; "
            "lower resources.* in the space, or start more nodes"
        )
    if not any(node.get("CPU", 0) >= wanted.cpus and node.get("GPU", 0) >= gpus for node in cluster.resources):
        raise UserError(
            f"resources: a worker needs {wanted.cpus} CPUs and {gpus:g} GPUs on one node, and no node has that many; "
            "lower resources.cpus or resources.gpus in the space, and raise resources.workers"
        )
    fits = cluster.cpus // (wanted.workers * wanted.cpus)
    if gpus:
        fits = min(fits, int(cluster.gpus / (gpus * wanted.workers)))
    concurrent = max(1, min(fits, space.concurrent or fits))
    return {"CPU": wanted.cpus, "GPU": gpus}, concurrent


def _sweep_and_compare(
    space: Space, name: str, config: Config, expert: Any, runs: Path, cluster: Cluster, resume: bool, command: str
) -> Outcome:
    from raydelta.data.streams import is_streamed, share_cpus
    from raydelta.gallery import draw_gallery
    from raydelta.methods import METHODS, Job, make_job
    from raydelta.replay import draw_choices, replay, sum_up
    from raydelta.report import write_report
    from raydelta.table import draw_strips, evaluate_on_ray
    from raydelta.workers import open_large_sets

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
    elif space.resources.workers == 1:  # the drivers of several workers take no place, and would all start at once
        concurrent = space.concurrent or 0
    train = _Trainer(config, expert.directory, runs, large, resources, concurrent, space, directory.name)
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
    save_config(override(chosen, {"compute.workers": None}), directory / "best.yaml")
    report = None
    try:
        report = write_report(directory, lambda job: draw_gallery(job, gpus))
    except Exception as error:  # hours of training are not lost over a page
        again = f"raydelta report {directory}"
        warnings.warn(f"{directory}: no report, the results are whole; try {again}: {error}", stacklevel=2)
    trials = [_job({"kind": "translator"} | result, config, expert.directory, runs) for result in results]
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
    from raydelta.methods import ENSEMBLES

    waves: dict[int, dict[Path, Any]] = {}
    for job in jobs:
        for each in [*job.parents, job]:
            if each.kind not in ("expert", *ENSEMBLES):
                waves.setdefault(_depth(each), {})[each.directory] = each
    return [list(waves[depth].values()) for depth in sorted(waves)]


def _depth(job: Any) -> int:
    return 1 + max((_depth(parent) for parent in job.parents), default=0)


@dataclass(frozen=True)
class _Trainer:
    """Everything that is trained after the expert goes through Ray Tune here."""

    config: Config
    expert: Path
    runs: Path
    large: dict[str, Any]
    resources: dict[str, float]
    concurrent: int  # trials at once; 0: as many as fit, on nodes that join later too
    space: Space
    name: str  # of the sweep

    def sweep(self, directory: Path, resume: bool) -> list[dict[str, Any]]:
        """Overrides, validation mIoU, device seconds and error of every trial."""
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.basic_variant import BasicVariantGenerator

        space, steps = self.space, self.config.translator.steps
        search = {key: dimension.sampler() for key, dimension in space.search.items()}
        scheduler: Any = FIFOScheduler()
        if space.scheduler == "asha":
            scheduler = ASHAScheduler(
                time_attr="step",
                max_t=steps + 1,  # a trial ends by itself at its last step
                grace_period=max(1, int(space.grace * steps)),
                reduction_factor=space.reduction,
            )
        algorithm: Any = BasicVariantGenerator(max_concurrent=self.concurrent, random_state=self.config.seed)
        if space.algorithm == "optuna":
            import optuna
            from ray.tune.search.optuna import OptunaSearch

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            algorithm = OptunaSearch(seed=self.config.seed)
            if self.concurrent:
                algorithm = ConcurrencyLimiter(algorithm, max_concurrent=self.concurrent)
        tune_config = tune.TuneConfig(
            metric="miou",
            mode="max",
            num_samples=space.trials,
            scheduler=scheduler,
            search_alg=algorithm,
            # An actor that is reused would let Ray Train go on for a trial that was stopped.
            reuse_actors=space.resources.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        grid = 1
        for dimension in space.search.values():
            grid *= len(dimension.grid or [0])
        param_space = {"kind": "translator", "overrides": search}
        results = self._fit(directory, param_space, tune_config, "sweep", space.trials * grid, steps, resume)
        return [
            {
                "overrides": result.config["overrides"],
                "miou": (result.metrics or {}).get("miou"),
                "step": (result.metrics or {}).get("step", 0),
                "device_seconds": (result.metrics or {}).get("device_seconds", 0.0),
                "stopped_early": (result.metrics or {}).get("step", 0) < steps,
                "error": None if result.error is None else _last_line(result.error),
                "stage": None if result.error is not None else self._stage_of(result.config["overrides"]),
            }
            for result in results
        ]

    def _stage_of(self, overrides: dict[str, Any]) -> str:
        """The name of a trial's training: where its curve is, should an earlier run have trained it."""
        from raydelta.methods import make_job

        return make_job("translator", override(self.config, overrides), self.runs, self.expert).directory.name

    def finish(self, jobs: Sequence[Any]) -> None:
        """Train jobs to their end, side by side."""
        from ray import tune

        directory = self.runs / "unfinished" / f"jobs-{fingerprint([job.directory.name for job in jobs])}"
        if all(job.done for job in jobs):
            shutil.rmtree(directory, ignore_errors=True)
            return
        settings = [{"kind": job.kind, "config": job.config.model_dump(mode="json")} for job in jobs]
        tune_config = tune.TuneConfig(
            max_concurrent_trials=self.concurrent or None,
            reuse_actors=self.space.resources.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        steps = max(job.steps for job in jobs)
        results = self._fit(
            directory, {"job": tune.grid_search(settings)}, tune_config, "comparison", len(jobs), steps, resume=True
        )
        errors = [_last_line(result.error) for result in results if result.error is not None]
        if errors:
            raise UserError(f"the comparison could not be trained: {'; '.join(errors)}")
        shutil.rmtree(directory, ignore_errors=True)

    def _fit(
        self, directory: Path, param_space: Any, tune_config: Any, title: str, trials: int, steps: int, resume: bool
    ) -> list[Any]:
        from ray import tune
        from ray.tune.logger import JsonLoggerCallback

        fixed: dict[str, Any] = {"base": self.config, "expert": self.expert, "runs": self.runs}
        job_of = partial(_job, **fixed)
        # A trial of several workers only drives them, and they reserve for themselves.
        reserved = self.resources if self.space.resources.workers == 1 else DRIVER
        trainable = tune.with_resources(
            tune.with_parameters(_trial, **fixed, large=self.large, resources=self.resources),
            reserved,
        )
        progress = Progress(title)
        if resume and tune.Tuner.can_restore(str(directory)):
            tuner = tune.Tuner.restore(
                str(directory), trainable, param_space=param_space, resume_unfinished=True, restart_errored=True
            )
        else:
            shutil.rmtree(directory, ignore_errors=True)
            directory.parent.mkdir(parents=True, exist_ok=True)
            run_config = tune.RunConfig(
                name=directory.name,
                storage_path=str(directory.parent),
                callbacks=[
                    show_progress(progress, trials, steps, str(directory.relative_to(self.runs))),
                    tell_trackers(job_of, self.config, self.name),
                    JsonLoggerCallback(),
                ],
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            )
            tuner = tune.Tuner(trainable, param_space=param_space, tune_config=tune_config, run_config=run_config)
        results = list(tuner.fit())
        scores = [r.metrics["miou"] for r in results if r.metrics and "miou" in r.metrics]
        best = f"  best validation mIoU {max(scores):.1f} %" if scores else ""
        progress.finish(f"{len(results)} trainings{best}")
        return results


def _trial(
    settings: dict[str, Any],
    *,
    base: Config,
    expert: Path,
    runs: Path,
    large: dict[str, Any],
    resources: dict[str, float],
) -> None:
    """The trainable of the sweep (kind and overrides) and of the comparison (a whole job)."""
    from raydelta.workers import tune_trial

    job = _job(settings, base, expert, runs)
    tune_trial(job, {name: large[name] for name in job.large_sets}, resources)


def _job(settings: dict[str, Any], base: Config, expert: Path, runs: Path) -> "Job":
    from raydelta.methods import make_job

    if "job" in settings:
        return make_job(settings["job"]["kind"], Config(**settings["job"]["config"]), runs, expert)
    return make_job(settings["kind"], override(base, settings["overrides"]), runs, expert)


def _last_line(error: BaseException) -> str:
    from ray.exceptions import OutOfMemoryError

    from raydelta.workers import cause_of

    cause = cause_of(error)
    if isinstance(cause, OutOfMemoryError):  # its last lines are about Ray's settings
        return f"out of memory: its node had none left; {ROOM}"
    if found := re.search(r"(CUDA out of memory|can't allocate memory)[^.]*", str(cause)):  # torch's words for it
        return f"out of memory: {found.group()}; {ROOM}"
    return str(cause).strip().splitlines()[-1]
