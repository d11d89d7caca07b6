"""A training on a Ray cluster: as a Ray task on a CPU, or through Ray Train on a GPU and on several devices.

Ray Train takes 11 to 17 seconds to start, where a task takes 2: too much for a small training on a CPU.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from raydelta.compute.capacity import capacity, workers_per_node
from raydelta.compute.cluster import set_defaults
from raydelta.compute.device import find_place
from raydelta.compute.gauges import record_training
from raydelta.compute.tasks import cause_of
from raydelta.data.streams import Images, TrainingSet, is_streamed, share_cpus
from raydelta.errors import TrainingError, UserError
from raydelta.storage import bucket
from raydelta.storage.files import address_of, locate, patiently
from raydelta.storage.locks import exclusive
from raydelta.training.assemble import open_large_sets
from raydelta.training.checkpoint import KEPT, find_whole
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.job import Job
from raydelta.training.run import record_report, run_loop, take_over, train_alone, working_directory

if TYPE_CHECKING:
    from ray import ObjectRef

MAX_FAILURES = 2  # processes of one training that may die
EVERY = 5.0  # seconds between two looks at a curve in a bucket

RESIZE = 60.0  # seconds between two looks whether an elastic training can have more workers

Shared: TypeAlias = "TrainingSet | ObjectRef"
"""A training set for any process of the cluster: images in the object store, or rows that Ray Data streams."""


def share(large: Mapping[str, TrainingSet]) -> dict[str, Shared]:
    """The sets with the images of each in the object store, once for all trainings that are given them."""
    import ray

    return {name: ray.put(images) if isinstance(images, Images) else images for name, images in large.items()}


def fetch(large: Mapping[str, Shared]) -> dict[str, TrainingSet]:
    """The sets behind ``share``, in this process. Images stay in the object store's memory."""
    import ray

    return {name: ray.get(each) if isinstance(each, ray.ObjectRef) else each for name, each in large.items()}


def train_on_ray(
    job: Job,
    on_report: Callable[[dict[str, Any]], None] = lambda metrics: None,
    large: Mapping[str, Shared] | None = None,
    resources: Mapping[str, float] | None = None,
) -> None:
    """Train a job on ``compute.workers`` workers, GPUs where the cluster has them, and publish it.

    One worker on a CPU is a Ray task, all else is Ray Train. A killed worker is replaced, and the training goes on from
    the last checkpoint; a rerun after a killed driver too. While another process trains the same job, wait for its
    result.

    Args:
        large: the large sets, if they are open and shared already.
        resources: what each worker reserves; a CPU, and a GPU where there are some, if None.

    Raises:
        UserError: the cluster cannot give so many workers, or the input is bad.
        TrainingError: a loss is not finite.
    """
    import ray

    workers, gpus = choose_workers(job, None if resources is None else resources.get("GPU", 0))
    with exclusive(job.directory):  # it waits here, where it reserves nothing; who trains takes the lock again
        if job.done:
            return
    working = working_directory(job)
    working.mkdir(parents=True, exist_ok=True)
    progress = working / "progress.jsonl"
    progress.unlink(missing_ok=True)
    opened = share(open_large_sets(job)) if large is None else large
    streamed = _streamed(opened)
    # Ray Data could never start if the workers reserved every CPU.
    resources = dict(resources or {"CPU": 0.5 if streamed and not gpus else 1})
    resources.pop("GPU", None)
    if streamed and large is None:
        share_cpus(streamed.values(), ray.cluster_resources().get("CPU", 0) - resources["CPU"] * workers)
    task_alone = workers == 1 and not gpus
    if task_alone:
        settings = {"num_cpus": resources["CPU"], "max_retries": MAX_FAILURES}
        task = ray.remote(**settings)(_task).options(name=f"train {job.directory.name}")
        work = partial(_get, task.remote(job, opened, progress))
    else:
        work = partial(_fit, job, _trainer(job, opened, workers, gpus, resources, progress))
    # One on another machine tells what it reports with its checkpoints, if the runs are in a bucket.
    tell = _follow_bucket(job, on_report) if task_alone and address_of(working) else _follow(progress, on_report)
    _run_beside(work, tell)
    if not job.done:
        raise TrainingError(f"{job.directory.name}: Ray ended without a finished training; see {working}")
    bucket.remove(working)


def _fit(job: Job, trainer: Any) -> None:
    with exclusive(job.directory):
        failure = None if job.done else trainer.fit().return_value
    if failure is not None:
        raise failure


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _task(job: Job, large: Mapping[str, Shared], progress: Path) -> None:
    """A training on one device. Ray starts it again when its process dies."""
    torch.set_num_threads(1)

    def on_report(metrics: dict[str, Any]) -> None:
        record_training(job.kind, job.directory.name, metrics)
        with contextlib.suppress(OSError), progress.open("a") as file:  # a line of progress is not worth a run
            file.write(json.dumps(metrics) + "\n")

    with exclusive(job.directory):
        if not job.done:
            train_alone(job, fetch(large), on_report)


def _trainer(
    job: Job,
    large: Mapping[str, Shared],
    workers: int,
    gpus: float,
    resources: dict[str, float],
    progress: Path,
) -> Any:
    """The Ray Train run of a job. It resumes from what a killed one has left under the same path and name."""
    set_defaults()  # also in a trial, which no command of ours has started
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    streamed, asked = _streamed(large), job.config.compute.workers
    held = {name: each for name, each in large.items() if name not in streamed}
    files, folder = locate(progress.parent) or (None, str(progress.parent.resolve()))
    return TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "held": held},
        datasets=streamed or None,
        scaling_config=ScalingConfig(
            num_workers=asked if isinstance(asked, tuple) else workers,
            use_gpu=gpus > 0,
            resources_per_worker=resources | ({"GPU": gpus} if gpus else {}),
            elastic_resize_monitor_interval_s=RESIZE,
        ),
        run_config=RunConfig(
            name=job.directory.name,  # on the dashboard
            storage_path=folder,
            storage_filesystem=files,
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[_progress_callback(progress)],
        ),
    )


def choose_workers(job: Job, gpus: float | None = None) -> tuple[int, float]:
    """How many workers train a job, at most, and the GPUs of each.

    If ``compute.workers`` does not say: the GPUs of one node, as far as they divide the batches, or one CPU. Between
    nodes a small batch costs more to share than another GPU brings.

    Args:
        gpus: of each worker; None: one where the cluster has any.

    Raises:
        UserError: the cluster will never have as many as are asked for, or they do not divide the batch.
    """
    nodes = capacity()
    each = float(any(node.get("GPU", 0) for node in nodes)) if gpus is None else gpus
    room = workers_per_node(nodes, {"CPU": 1, "GPU": each})
    asked = job.config.compute.workers
    if asked is None:
        most = max(1, max(room) if each else 1)
        return max(n for n in range(1, most + 1) if not any(batch % n for batch in job.batches.values())), each
    least, most = asked if isinstance(asked, tuple) else (asked, asked)
    for count in range(least, most + 1):
        if any(batch % count for batch in job.batches.values()):
            batches = " and ".join(map(str, job.batches.values()))
            raise UserError(f"compute.workers = {count} does not divide the batch of the {job.kind}, {batches} images")
    if least > sum(room):
        kind = "GPU" if each else "CPU"
        there = int(sum(node.get(kind, 0) for node in nodes))
        reason = f"{there} {kind}s at most" if least > there else f"{sum(room)} workers a CPU and {each:g} GPU at most"
        raise UserError(f"compute.workers = {least}, but the cluster can give {reason}; ask for fewer")
    return most, each


def _train_worker(settings: dict[str, Any]) -> TrainingError | None:
    """A rank's part of a run of Ray Train. What every rank raises is returned instead: raised, it would be retried."""
    import ray
    import ray.train
    import ray.train.torch
    from ray.train import CheckpointUploadMode

    job: Job = settings["job"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    place = find_place(
        job.config, context.get_world_rank(), context.get_world_size(), device, segmenter=job.kind != "translator"
    )
    if device.type == "cpu":
        torch.set_num_threads(1)
    large = fetch(settings["held"])
    large |= {name: ray.train.get_dataset_shard(name) for name in job.large_sets if name not in large}

    leaving, under_way = False, Path()

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> bool:
        nonlocal leaving, under_way
        if place.rank == 0:
            record_report(job, metrics, checkpoint)
            record_training(job.kind, job.directory.name, metrics)
        patiently(job.directory.parent)
        mode = CheckpointUploadMode.SYNC
        if checkpoint is not None and metrics["step"] < metrics["steps"] and not leaving:
            while under_way.name and under_way.exists():  # Ray removes it when it is copied; if it fails, it ends this
                time.sleep(0.02)
            mode, checkpoint = CheckpointUploadMode.ASYNC, take_over(checkpoint)
            under_way = checkpoint
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(checkpoint)) if checkpoint else None,
            checkpoint_upload_mode=mode,
        )
        leaving = ray.train.get_preemption_info() is not None  # the same on every rank
        return leaving

    try:
        run_loop(job, large, place, report, _last_of_run(working_directory(job) / job.directory.name, place.rank))
    except TrainingError as error:
        return error
    return None


def _last_of_run(folder: Path, rank: int) -> Path | None:
    """The last whole checkpoint of this run of Ray Train in its folder, the same on every rank. Collective."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    last = ray.train.get_checkpoint()
    if last is None:
        return None
    bucket.fetch(folder, over=True)
    name = Path(last.path).name
    earlier = (other for other in folder.glob("checkpoint_*") if other.name <= name)  # named by their time
    return broadcast_from_rank_zero(find_whole(sorted(earlier, reverse=True)) if rank == 0 else None)


def _streamed(large: Mapping[str, Shared]) -> dict[str, Any]:
    """The Ray Data sets among them."""
    import ray

    return {name: each for name, each in large.items() if not isinstance(each, ray.ObjectRef) and is_streamed(each)}


def _progress_callback(path: Path) -> Any:
    """Writes the metrics of every report to a file. It runs in the controller, which is on the driver's node."""
    from ray.train import UserCallback

    class WriteProgress(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            with contextlib.suppress(OSError), path.open("a") as file:  # a line of progress is not worth a run
                file.write(json.dumps(metrics[0]) + "\n")

    return WriteProgress()


def _follow(path: Path, on_report: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """A function that calls ``on_report`` for every new whole line of a file of JSON lines."""
    seen = 0

    def poll() -> None:
        nonlocal seen
        try:
            lines = path.read_text().split("\n")[:-1]
        except OSError:  # not there yet, or the storage is away
            return
        for line in lines[seen:]:
            on_report(json.loads(line))
        seen = len(lines)

    return poll


def _follow_bucket(job: Job, on_report: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """A function that calls ``on_report`` for every new report in the curve that a training keeps in a bucket."""
    curve = working_directory(job) / CURVE
    told, asked = max((report["step"] for report in read_curve(curve)), default=0), time.monotonic()

    def poll() -> None:
        nonlocal told, asked
        if time.monotonic() - asked > EVERY:
            with contextlib.suppress(UserError):  # whoever trains says so
                bucket.fetch(curve)
            asked = time.monotonic()
        for metrics in read_curve(curve if curve.exists() else job.directory / CURVE):
            if metrics["step"] > told:
                told = metrics["step"]
                on_report(metrics)

    return poll


def _run_beside(work: Callable[[], Any], poll: Callable[[], None]) -> None:
    """Run ``work`` in a thread and ``poll`` here, so that progress shows and Ctrl-C is ours."""
    failure: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        poll()
    poll()
    if failure:
        raise cause_of(failure[0])
