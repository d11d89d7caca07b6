"""Trainings through Ray Tune: the trials of a sweep, and jobs that are trained to their end side by side.

A trial is one training that reports its validation mIoU on the way; all share the expert and the images in the object
store. Everything that finishes becomes a stage, so what is trained again repeats nothing.
"""

import contextlib
import math
import os
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raydelta.compute.capacity import workers_per_node
from raydelta.compute.cluster import Cluster
from raydelta.compute.gauges import record_training
from raydelta.compute.tasks import cause_of
from raydelta.config import Config, override
from raydelta.errors import UserError
from raydelta.progress import Progress
from raydelta.results.sweep import Trial
from raydelta.search_space import Space
from raydelta.storage import bucket
from raydelta.storage.files import fingerprint, locate, write_atomically
from raydelta.storage.locks import exclusive, open_lock
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.job import Job, make_job
from raydelta.training.on_ray import Shared, fetch, train_on_ray
from raydelta.training.run import train_alone, working_directory
from raydelta.training.stage import read_stage
from raydelta.tuning.callbacks import prune_trials, show_progress, tell_trackers
from raydelta.tuning.halving import expect_steps, make_milestones, make_scheduler
from raydelta.tuning.searchers import make_searcher

DRIVER = {"memory": float(2**30)}
"""What a trial reserves that only drives its workers: the memory of its two processes (torch and Ray Train), so that
many of them spread over the nodes. Any share of a CPU would keep the last worker from starting where workers need all
CPUs."""

PAUSED = 5.0
"""Seconds after which a trial that waits in a report counts as paused: then another one may go on with its training."""

KIND = "accelerator_type:"
"""What Ray calls the resource that a node with a GPU of a kind has."""

ROOM = "run fewer trials at once (`concurrent`), or take a smaller batch or network"


def trial_resources(space: Space, cluster: Cluster) -> tuple[dict[str, float], int]:
    """What a worker of a trial reserves, and how many trials fit the cluster as it is, or as the space limits them.

    Raises:
        UserError: the cluster can never give that.
    """
    wanted = space.resources
    nodes = [node for node in cluster.resources if all(node.get(k, 0) >= v for k, v in wanted.others.items())]
    if not nodes:
        there = {name for node in cluster.resources for name in node if ":" not in name or name.startswith(KIND)}
        raise UserError(
            f"resources: a worker needs {_names(wanted.others)}, and no node of the cluster has that; there are "
            f"{_names(there)}. Correct resources.accelerator_type or resources.custom in the space, or start such nodes"
        )
    gpus = wanted.gpus if wanted.gpus is not None else float(cluster.gpus > 0)
    each = {"CPU": wanted.cpus, "GPU": gpus} | wanted.others
    has = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    if gpus * wanted.workers > has["GPU"] or wanted.workers * wanted.cpus > has["CPU"]:
        raise UserError(
            f"resources: a trial needs {wanted.workers * wanted.cpus} CPUs and {gpus * wanted.workers:g} GPUs, "
            f"but the cluster can give {has['CPU']:g} CPUs and {has['GPU']:g} GPUs at most; "
            "lower resources.* in the space, or start more nodes"
        )
    room = workers_per_node(nodes, each)
    if max(room) == 0:
        raise UserError(
            f"resources: a worker needs {wanted.cpus} CPUs and {gpus:g} GPUs on one node, and no node has that many; "
            "lower resources.cpus or resources.gpus in the space, and raise resources.workers"
        )
    fits = sum(room) // wanted.workers
    if fits == 0:
        needs = ", ".join(f"{amount:g} {_names([kind])}" for kind, amount in each.items() if amount)
        raise UserError(
            f"resources: a trial has {wanted.workers} workers that need {needs} each, and the nodes have room for "
            f"{sum(room)}; lower resources.* in the space, or start more nodes"
        )
    return each, min(fits, space.concurrent or fits)


def _names(resources: Iterable[str]) -> str:
    return ", ".join(sorted(name.removeprefix(KIND) for name in resources))


@dataclass(frozen=True)
class Trainer:
    """Everything that is trained after the expert goes through Ray Tune here."""

    config: Config
    expert: Path
    runs: Path
    large: dict[str, Shared]
    resources: dict[str, float]
    concurrent: int  # trials at once; 0: as many as fit, on nodes that join later too
    space: Space
    name: str  # of the sweep

    def sweep(self, directory: Path, resume: bool) -> Any:
        """Run the trials of the space: Ray Tune's ResultGrid."""
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

        space, steps, every = self.space, self.config.translator.steps, self.config.compute.checkpoint_every
        search = {key: dimension.sampler() for key, dimension in space.search.items()}
        grid = math.prod(len(dimension.grid or [0]) for dimension in space.search.values())
        total = None
        scheduler: Any = FIFOScheduler()
        if space.scheduler == "halving":
            milestones = make_milestones(steps, space.grace, space.reduction, every)
            every = min([every, *milestones])
            total = expect_steps(space.trials * grid, [*milestones, steps], space.reduction)
            scheduler = make_scheduler(milestones, space.reduction, self.concurrent)
        elif space.scheduler == "asha":
            scheduler = ASHAScheduler(
                time_attr="step",
                max_t=steps + 1,  # a trial ends by itself at its last step
                grace_period=max(1, int(space.grace * steps)),
                reduction_factor=space.reduction,
            )
        tune_config = tune.TuneConfig(
            metric="miou",
            mode="max",
            num_samples=space.trials,
            scheduler=scheduler,
            search_alg=make_searcher(space, self.config.seed, self.concurrent),
            # An actor that is reused would let Ray Train go on for a trial that was stopped.
            reuse_actors=space.resources.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        param_space = {"kind": "translator", "overrides": search}
        saving = replace(self, config=override(self.config, {"compute.checkpoint_every": every}))
        with exclusive(directory):
            return saving._fit(
                directory, param_space, tune_config, "sweep", space.trials * grid, steps, resume, total=total
            )

    def read(self, results: Any) -> list[Trial]:
        """The trials of a ResultGrid."""
        trials = []
        for result in results:
            metrics, overrides = result.metrics or {}, result.config["overrides"]
            trial = Trial(
                overrides=overrides,
                miou=metrics.get("miou"),
                step=metrics.get("step", 0),
                device_seconds=metrics.get("device_seconds", 0.0),
                error=None if result.error is None else last_line(result.error),
                ended=True,
                stopped_early=metrics.get("step", 0) < self.config.translator.steps,
            )
            names = [job.directory.name for job in self.jobs_of([trial])]
            trials.append(replace(trial, stage=next(iter(names), None)))
        return trials

    def jobs_of(self, trials: Sequence[Trial]) -> list[Job]:
        """The jobs behind the trials that did not fail."""
        settings = [{"kind": "translator", "overrides": trial.overrides} for trial in trials if trial.error is None]
        return [job_of(each, self.config, self.expert, self.runs) for each in settings]

    def finish(self, jobs: Sequence[Job]) -> None:
        """Train jobs to their end, side by side."""
        directory = self.runs / "unfinished" / f"jobs-{fingerprint([job.directory.name for job in jobs])}"
        with exclusive(directory):
            self._finish(directory, jobs)

    def _finish(self, directory: Path, jobs: Sequence[Job]) -> None:
        from ray import tune

        if all(job.done for job in jobs):
            bucket.remove(directory)
            return
        settings = [
            {
                "kind": job.kind,
                "config": job.config.model_dump(mode="json"),
                "expert": job.expert and job.expert.name,
            }
            for job in jobs
        ]
        tune_config = tune.TuneConfig(
            max_concurrent_trials=self.concurrent or None,
            reuse_actors=self.space.resources.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        steps = max(job.steps for job in jobs)
        results = self._fit(
            directory, {"job": tune.grid_search(settings)}, tune_config, "comparison", len(jobs), steps, resume=True
        )
        errors = [last_line(result.error) for result in results if result.error is not None]
        if errors:
            raise UserError(f"the comparison could not be trained: {'; '.join(errors)}")
        bucket.remove(directory)

    def _fit(
        self,
        directory: Path,
        param_space: Any,
        tune_config: Any,
        title: str,
        trials: int,
        steps: int,
        resume: bool,
        total: int | None = None,
    ) -> Any:
        from ray import tune
        from ray.tune.logger import JsonLoggerCallback

        fixed: dict[str, Any] = {"base": self.config, "expert": self.expert, "runs": self.runs}
        made = partial(job_of, **fixed)
        # A trial of several workers only drives them, and they reserve for themselves.
        reserved = tune.PlacementGroupFactory([self.resources if self.space.resources.workers == 1 else DRIVER])
        trainable = tune.with_resources(
            tune.with_parameters(_trial, **fixed, large=self.large, resources=self.resources),
            reserved,
        )
        progress = Progress(title)
        tuner = _restore(directory, trainable, param_space) if resume else None
        if tuner is None:
            bucket.remove(directory)
            directory.parent.mkdir(parents=True, exist_ok=True)
            files, folder = locate(directory.parent) or (None, str(directory.parent))
            run_config = tune.RunConfig(
                name=directory.name,
                storage_path=folder,
                storage_filesystem=files,
                callbacks=[
                    show_progress(progress, trials, steps, total, str(directory.relative_to(self.runs))),
                    tell_trackers(made, self.config, self.name),
                    prune_trials(made),
                    JsonLoggerCallback(),
                ],
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            )
            tuner = tune.Tuner(trainable, param_space=param_space, tune_config=tune_config, run_config=run_config)
        results = tuner.fit()
        bucket.fetch(directory)
        scores = [r.metrics["miou"] for r in results if r.metrics and "miou" in r.metrics]
        best = f"  best validation mIoU {max(scores):.1f} %" if scores else ""
        progress.finish(f"{len(results)} trainings{best}")
        return results


def _restore(directory: Path, trainable: Any, param_space: Any) -> Any:
    """The Tuner of a sweep that was stopped; None if there is none, or none that this version can read."""
    from ray import tune

    files, folder = locate(directory) or (None, str(directory))
    if not tune.Tuner.can_restore(folder, storage_filesystem=files):
        return None
    try:
        return tune.Tuner.restore(
            folder,
            trainable,
            param_space=param_space,
            resume_unfinished=True,
            restart_errored=True,
            storage_filesystem=files,
        )
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # Tune pickles callbacks by their module
        warnings.warn(
            f"{directory}: Ray Tune's state is of another version and cannot be read ({error}); the search begins "
            "anew, and no training that has finished is repeated",
            stacklevel=2,
        )
        return None


def _trial(
    settings: dict[str, Any],
    *,
    base: Config,
    expert: Path,
    runs: Path,
    large: dict[str, Shared],
    resources: dict[str, float],
) -> None:
    """The trainable of the sweep (kind and overrides) and of the comparison (a whole job)."""

    job = job_of(settings, base, expert, runs)
    tune_trial(job, {name: large[name] for name in job.large_sets}, resources)


def job_of(settings: dict[str, Any], base: Config, expert: Path, runs: Path) -> Job:
    """The job behind what Tune passes to a trial."""
    if "job" in settings:
        job = settings["job"]
        named = job.get("expert", expert.name)  # of an older version: there was one expert
        return make_job(job["kind"], Config(**job["config"]), runs, named and expert.parent / named)
    return make_job(settings["kind"], override(base, settings["overrides"]), runs, expert)


def last_line(error: BaseException) -> str:
    """What a trial has failed of, in a line that says what to do."""
    from ray.exceptions import OutOfMemoryError

    cause = cause_of(error)
    if isinstance(cause, OutOfMemoryError):  # its last lines are about Ray's settings
        return f"out of memory: its node had none left; {ROOM}"
    if found := re.search(r"(CUDA out of memory|can't allocate memory)[^.]*", str(cause)):  # torch's words for it
        return f"out of memory: {found.group()}; {ROOM}"
    return str(cause).strip().splitlines()[-1]


def tune_trial(job: Job, large: Mapping[str, Shared], resources: Mapping[str, float]) -> None:
    """Inside a Tune function: train a job on one device, or on several workers through Ray Train, and report.

    What it reported before, if it was trained in part or in whole, it reports again: whoever decides which trials train
    on then knows as much of it as if it had just been trained.

    Args:
        resources: what each of several workers reserves.
    """
    from ray import tune

    if job.config.compute.workers not in (None, 1):
        with exclusive(job.directory):
            done = _report_again(job, tune.report)
        if not done:
            train_on_ray(job, tune.report, large, resources)
        return
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    lock, own = open_lock(job.directory), secrets.token_hex(8)  # two trials, or two sweeps, may come to one training
    owner, reported = working_directory(job) / "owner", 0

    def report(metrics: dict[str, Any]) -> None:
        nonlocal reported
        if metrics["step"] <= reported:
            return
        record_training(job.kind, job.directory.name, metrics)
        reported = metrics["step"]
        # A paused trial waits in here, in a process that is kept for other trials: it must not hold the lock.
        timer = threading.Timer(PAUSED, lock.release)
        timer.start()
        try:
            tune.report(metrics)
        finally:
            timer.cancel()
            timer.join()
        if not lock.held:
            lock.acquire()
            bucket.fetch(owner)
            if job.done or not owner.exists() or owner.read_text() != own:
                raise _Overtaken

    try:
        while True:
            lock.acquire()
            with contextlib.suppress(_Overtaken):
                write_atomically(owner, own)
                if not _report_again(job, report):
                    # Not Tune's checkpoints: what it knows of them is ten seconds old when its driver is killed.
                    train_alone(job, fetch(large), report)
                bucket.remove(working_directory(job))
                return
    finally:
        lock.release()


class _Overtaken(Exception):  # noqa: N818 - it is no error
    """While a trial waited in a report, another process went on with its training."""


def _report_again(job: Job, report: Callable[[dict[str, Any]], None]) -> bool:
    """Report what is known of a training that was begun; whether it is finished."""
    stage = read_stage(job.directory)
    folder = working_directory(job) if stage is None else job.directory
    bucket.fetch(folder / CURVE, over=stage is None)
    curve = read_curve(folder / CURVE)
    for metrics in curve if stage is None else [*curve[:-1], stage["metrics"]]:
        report(metrics)
    return stage is not None
