"""The adapters that start the training loop: as Ray Train workers, as a Ray task, as a Tune function, or right here.

Each opens the sets, finds the place, and hands the loop a ``report`` function; the loop knows none of them. Whoever
finishes the last step publishes the checkpoint as the job's stage. Ray Train is for several devices: it takes 11 to 17
seconds to start, where a task or a plain Tune function takes 2, so a training on one device takes that way.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raydelta.checkpoint import KEPT, find_whole, keep_checkpoint, list_checkpoints
from raydelta.cluster import capacity
from raydelta.config import Config
from raydelta.curves import CURVE, append_report, format_curve, read_curve
from raydelta.data.shards import read_manifest
from raydelta.data.streams import is_streamed, load_images, share_cpus, stream_rows
from raydelta.errors import UserError
from raydelta.methods import Job, assemble, label_ids
from raydelta.metrics import record_training
from raydelta.place import Place, choose_dtype
from raydelta.stages import complete_stage, patiently, read_stage, replace_directory, write_atomically
from raydelta.training import TrainingError, train

BYTES_PER_PIXEL = 4  # of a decoded image with its label
MAX_FAILURES = 2  # processes of one training that may die


def find_place(config: Config, rank: int = 0, world: int = 1, device: torch.device | None = None) -> Place:
    """The place of this process: the first GPU it may use, else the CPU."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = "tf32"
    return Place(device, rank, world, choose_dtype(config.compute.precision, device))


def open_large_sets(job: Job) -> dict[str, Any]:
    """The large training sets of a job: Images where their pixels fit ``data.cache_gib``, else a Ray Data set."""
    data = job.config.data
    size = (data.width, data.height)
    opened: dict[str, Any] = {}
    for domain in job.large_sets:
        uri, labels = getattr(data, domain), domain == "synthetic"
        rows = read_manifest(uri).splits["train"].rows
        if rows * data.width * data.height * BYTES_PER_PIXEL <= data.cache_gib * 2**30:
            opened[domain] = load_images(uri, "train", size, labels=labels)
        else:
            opened[domain] = stream_rows(uri, "train", size, labels=labels)
    return opened


def train_here(job: Job, on_report: Callable[[dict[str, Any]], None] = lambda metrics: None) -> None:
    """Train a job in this process, from its last checkpoint if it was interrupted, and publish it."""
    _train_alone(job, open_large_sets(job), on_report)
    shutil.rmtree(working_directory(job), ignore_errors=True)


def train_on_ray(
    job: Job,
    on_report: Callable[[dict[str, Any]], None] = lambda metrics: None,
    large: Mapping[str, Any] | None = None,
    resources: Mapping[str, float] | None = None,
) -> None:
    """Train a job on ``compute.workers`` workers, GPUs where the cluster has them, and publish it.

    One worker is a Ray task, several are Ray Train. A killed worker is replaced, and the training goes on from the last
    checkpoint; a rerun after a killed driver too.

    Args:
        large: the large sets, if they are open already.
        resources: what each worker reserves; a CPU, and a GPU where there are some, if None.

    Raises:
        UserError: the cluster cannot give so many workers, or the input is bad.
        TrainingError: a loss is not finite.
    """
    import ray

    workers, gpu = choose_workers(job)
    working = working_directory(job)
    working.mkdir(parents=True, exist_ok=True)
    progress = working / "progress.jsonl"
    progress.unlink(missing_ok=True)
    held, streamed = _split_sets(open_large_sets(job) if large is None else large)
    # Workers that hold every CPU would starve Ray Data for ever.
    resources = dict(resources or ({"CPU": 0.5 if streamed and not gpu else 1} | ({"GPU": 1} if gpu else {})))
    if streamed and large is None:
        share_cpus(streamed.values(), ray.cluster_resources().get("CPU", 0) - resources["CPU"] * workers)
    references = {name: ray.put(images) for name, images in held.items()}
    if workers == 1:
        settings = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "max_retries": MAX_FAILURES}
        task = ray.remote(**settings)(_task).options(name=f"train {job.directory.name}")
        work = partial(_get, task.remote(job, references, streamed, progress))
    else:
        work = partial(_fit, _trainer(job, references, streamed, workers, gpu, resources, progress))
    _run_beside(work, _follow(progress, on_report))
    if not job.done:
        raise TrainingError(f"{job.directory.name}: Ray ended without a finished training; see {working}")
    shutil.rmtree(working, ignore_errors=True)


def _fit(trainer: Any) -> None:
    failure = trainer.fit().return_value
    if failure is not None:
        raise failure


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _task(job: Job, references: Mapping[str, Any], streamed: Mapping[str, Any], progress: Path) -> None:
    """A training on one device. Ray starts it again when its process dies."""
    import ray

    torch.set_num_threads(1)

    def on_report(metrics: dict[str, Any]) -> None:
        record_training(job.kind, job.directory.name, metrics)
        with contextlib.suppress(OSError), progress.open("a") as file:  # a line of progress is not worth a run
            file.write(json.dumps(metrics) + "\n")

    large = {name: ray.get(reference) for name, reference in references.items()}
    _train_alone(job, large | {name: rows.iterator() for name, rows in streamed.items()}, on_report)


def _train_alone(job: Job, large: Mapping[str, Any], on_report: Callable[[dict[str, Any]], None]) -> None:
    working, runs = working_directory(job), job.directory.parent
    working.mkdir(parents=True, exist_ok=True)

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> bool:
        # The last is published and not kept: a training that went on from it would have nothing left to report.
        if checkpoint is not None and metrics["step"] < metrics["steps"]:
            patiently(runs, partial(keep_checkpoint, checkpoint, working))
        record_report(job, metrics, checkpoint)
        on_report(metrics)
        return _node_leaves()

    run_loop(job, large, find_place(job.config), report, find_whole(list_checkpoints(working)))


def _node_leaves() -> bool:
    """Whether the node of this process is being drained, as when a spot instance gets its notice."""
    import ray

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()


def _trainer(
    job: Job,
    references: Mapping[str, Any],
    streamed: Mapping[str, Any],
    workers: int,
    gpu: bool,
    resources: dict[str, float],
    progress: Path,
) -> Any:
    """The Ray Train run of a job. It resumes from what a killed one has left under the same path and name."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "held": references},
        datasets=dict(streamed) or None,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="train",
            storage_path=str(progress.parent.resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[_progress_callback(progress)],
        ),
    )


def tune_trial(job: Job, large: Mapping[str, Any], resources: Mapping[str, float]) -> None:
    """Inside a Tune function: train a job on one device, or on several workers through Ray Train, and report.

    What it reported before, if it was trained in part or in whole, it reports again: whoever decides which trials train
    on then knows as much of it as if it had just been trained.

    Args:
        resources: what each of several workers reserves.
    """
    from ray import tune

    def on_report(metrics: dict[str, Any]) -> None:
        record_training(job.kind, job.directory.name, metrics)
        tune.report(metrics)

    stage = read_stage(job.directory)
    curve = read_curve((working_directory(job) if stage is None else job.directory) / CURVE)
    for metrics in curve if stage is None else [*curve[:-1], stage["metrics"]]:
        tune.report(metrics)
    if stage is not None:
        return
    if (job.config.compute.workers or 1) > 1:
        train_on_ray(job, tune.report, large, resources)
        return
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    streams = {name: value.iterator() if is_streamed(value) else value for name, value in large.items()}
    # Not Tune's checkpoints: what it knows of them is ten seconds old when its driver is killed.
    _train_alone(job, streams, on_report)
    shutil.rmtree(working_directory(job), ignore_errors=True)


def run_loop(job: Job, large: Mapping[str, Any], place: Place, report: Any, resume: Path | None) -> None:
    """Assemble the job here and train it to its end. Collective."""
    parts = assemble(job, large, place)
    train(
        job.kind,
        parts.training,
        parts.streams,
        parts.augment,
        parts.validate,
        steps=job.steps,
        config=job.config,
        place=place,
        report=report,
        resume=resume,
    )


def record_report(job: Job, metrics: dict[str, Any], checkpoint: Path | None) -> None:
    """A line of the curve; after the last step curve and checkpoint become the job's stage, for all who ask for it."""
    curve = working_directory(job) / CURVE
    append_report(curve, metrics)
    if checkpoint is None or metrics["step"] < metrics["steps"] or job.done:
        return
    train_ids, validation_ids = label_ids(job)
    manifest = {
        "kind": job.kind,
        "metrics": metrics,
        "labels_train": train_ids,
        "labels_val": validation_ids,
        "expert": job.expert.name if job.expert else None,
        "translator": job.translator.directory.name if job.translator else None,
        "student": job.student.directory.name if job.student else None,
        "members": [member.directory.name for member in job.members],
    }

    def publish() -> None:
        replace_directory(checkpoint, job.directory / "checkpoint")
        write_atomically(job.directory / CURVE, format_curve(read_curve(curve)))
        complete_stage(job.directory, manifest)

    patiently(job.directory.parent, publish)


def working_directory(job: Job) -> Path:
    """Where an unfinished training keeps its checkpoints and curve; removed when it is published."""
    return job.directory.parent / "unfinished" / job.directory.name


def choose_workers(job: Job) -> tuple[int, bool]:
    """How many workers train a job with Ray Train, and whether each has a GPU.

    If ``compute.workers`` does not say: every GPU of the cluster, as far as the batches divide, or one CPU.

    Raises:
        UserError: the cluster will never have as many as are asked for, or they do not divide the batch.
    """
    gpus, cpus = (int(sum(node.get(kind, 0) for node in capacity())) for kind in ("GPU", "CPU"))
    asked = job.config.compute.workers
    if asked is None:
        return max(
            n for n in range(1, max(1, gpus) + 1) if not any(batch % n for batch in job.batches.values())
        ), gpus > 0
    if any(batch % asked for batch in job.batches.values()):
        batches = " and ".join(map(str, job.batches.values()))
        raise UserError(f"compute.workers = {asked} does not divide the batch of the {job.kind}, {batches} images")
    limit, kind = (gpus, "GPUs") if gpus else (cpus, "CPUs")
    if asked > limit:
        raise UserError(f"compute.workers = {asked}, but the cluster can give {limit} {kind} at most; ask for fewer")
    return asked, gpus > 0


def _train_worker(settings: dict[str, Any]) -> TrainingError | None:
    """A rank's part of a run of Ray Train. What every rank raises is returned instead: raised, it would be retried."""
    import ray
    import ray.train
    import ray.train.torch

    job: Job = settings["job"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    place = find_place(job.config, context.get_world_rank(), context.get_world_size(), device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    large = {name: ray.get(reference) for name, reference in settings["held"].items()}
    large |= {name: ray.train.get_dataset_shard(name) for name in job.large_sets if name not in large}

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> bool:
        if place.rank == 0:
            record_report(job, metrics, checkpoint)
            record_training(job.kind, job.directory.name, metrics)
        patiently(job.directory.parent)
        ray.train.report(
            metrics, checkpoint=ray.train.Checkpoint.from_directory(str(checkpoint)) if checkpoint else None
        )
        return bool(place.total(torch.tensor(float(_node_leaves()), device=place.device)))

    try:
        run_loop(job, large, place, report, _last_of_run(place.rank))
    except TrainingError as error:
        return error
    return None


def _last_of_run(rank: int) -> Path | None:
    """The last whole checkpoint of this run of Ray Train, the same on every rank. Collective."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    last = ray.train.get_checkpoint()
    if last is None:
        return None
    path = Path(last.path)
    earlier = (other for other in path.parent.glob("checkpoint_*") if other.name <= path.name)  # named by their time
    return broadcast_from_rank_zero(find_whole(sorted(earlier, reverse=True)) if rank == 0 else None)


def _split_sets(large: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    streamed = {name: value for name, value in large.items() if is_streamed(value)}
    return {name: value for name, value in large.items() if name not in streamed}, streamed


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


def actor_pool(most: int) -> dict[str, Any]:
    """What ``map_batches`` takes for a pool of at most so many actors: one on every GPU, or else on every CPU."""
    import ray
    from ray.data import ActorPoolStrategy

    # Ray Data's plans and warnings of progress bars would hide our progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    return {
        "compute": ActorPoolStrategy(size=min(gpus or cpus, most)),
        "num_gpus": 1 if gpus else 0,
        "num_cpus": 0.5,  # half of the CPUs have to stay free for reading, or nothing ever starts
    }


def cause_of(error: BaseException) -> BaseException:
    """The user's or the training's own error behind what Ray wrapped around it, else the error itself."""
    from ray.exceptions import RayTaskError

    seen = [error]
    while seen:
        current = seen.pop()
        # A RayTaskError is an instance of its cause's class too, but prints as a traceback.
        if isinstance(current, UserError | TrainingError) and not isinstance(current, RayTaskError):
            return current
        inner = [current.__cause__, getattr(current, "cause", None)]
        inner += list(getattr(current, "worker_failures", {}).values())
        seen += [item for item in inner if isinstance(item, BaseException)]
    return error


def get_or_cause(reference: Any) -> Any:
    """``ray.get``, but a task's own error comes out as it was raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None
