"""A training on one device in this process: checkpoints, curve, and the finished stage.

Whoever finishes the last step publishes the checkpoint as the job's stage.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raydelta.compute.cluster import node_leaves
from raydelta.compute.device import Place, find_place
from raydelta.data.pixels import NORMALISATION
from raydelta.data.shards import read_manifest
from raydelta.data.streams import TrainingSet
from raydelta.errors import UserError
from raydelta.storage.bucket import fetch, names_in, publish, publish_copy, remove
from raydelta.storage.files import address_of, patiently, replace_directory, write_atomically
from raydelta.storage.locks import exclusive
from raydelta.training.assemble import assemble, open_large_sets
from raydelta.training.checkpoint import find_whole, keep_checkpoint, keep_weights, list_checkpoints
from raydelta.training.curve import CURVE, append_report, format_curve, read_curve
from raydelta.training.job import OWN, Job, label_ids
from raydelta.training.loop import train
from raydelta.training.stage import complete_stage

GRACE = 10.0
"""Seconds that a training which failed gives its last checkpoint to be copied."""


def train_here(job: Job, on_report: Callable[[dict[str, Any]], None] = lambda metrics: None) -> None:
    """Train a job in this process, from its last checkpoint if it was interrupted, and publish it.

    While another process trains the same job, wait for its result.
    """
    with exclusive(job.directory):
        if not job.done:
            train_alone(job, open_large_sets(job), on_report)
        remove(working_directory(job))


def train_alone(job: Job, large: Mapping[str, TrainingSet], on_report: Callable[[dict[str, Any]], None]) -> None:
    """Train a job with its large sets open and the lock of its directory held; ``working_directory`` stays."""
    working = working_directory(job)
    working.mkdir(parents=True, exist_ok=True)
    patiently(job.directory.parent, partial(fetch, working, over=True))  # another machine may have got further
    keeper = Keeper(working)

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> bool:
        keeper.check()
        # The last is published and not kept: a training that went on from it would have nothing left to report.
        last = metrics["step"] == metrics["steps"]
        if last:
            keeper.wait()
        record_report(job, metrics, checkpoint)  # its line of the curve comes before its checkpoint
        if checkpoint is not None and not last:
            keeper.keep(checkpoint)
        on_report(metrics)
        leaving = node_leaves()
        if leaving:
            keeper.wait()
        return leaving

    place = find_place(job.config, segmenter=job.kind != "translator")
    try:
        run_loop(job, large, place, report, find_whole(list_checkpoints(working)))
    finally:
        keeper.close()


class Keeper:
    """Keeps the checkpoints of a training in its working directory.

    On one disk that is a rename. Elsewhere (another disk, NFS, a bucket) it is a copy, made beside the training: at
    most one is under way, and the next one waits for it.
    """

    def __init__(self, working: Path) -> None:
        self._working = working
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def keep(self, checkpoint: Path) -> None:
        """Take a checkpoint over, which is gone from where it was.

        Raises:
            UserError: it, or the one before, could not be written.
        """
        own = take_over(checkpoint)
        try:
            self.wait()
        except UserError:
            keep_checkpoint(own, self._working)  # where the same command finds it
            raise
        runs = self._working.parents[1]
        if address_of(runs) is None and own.stat().st_dev == runs.stat().st_dev:
            self._keep(own)
        else:
            self._thread = threading.Thread(target=self._keep_beside, args=(own,), daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raise what went wrong beside the training, if anything did; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is where it belongs; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """The training has ended, or failed: give the last checkpoint a moment."""
        if self._thread is not None:
            self._thread.join(GRACE)

    def _keep(self, own: Path) -> None:
        try:
            runs = self._working.parents[1]
            patiently(runs, partial(keep_checkpoint, own, self._working))
            patiently(runs, partial(_publish_checkpoints, self._working))
        finally:
            shutil.rmtree(own.parent, ignore_errors=True)

    def _keep_beside(self, own: Path) -> None:
        try:
            self._keep(own)
        except BaseException as error:  # raised in the training's thread
            self._error = error


def _publish_checkpoints(working: Path) -> None:
    """Bring the checkpoints and the curve of a training into its bucket, if its runs are in one."""
    if address_of(working) is None:
        return
    kept = list_checkpoints(working)
    publish_copy(working / CURVE)
    for path in reversed(kept):
        publish(path, whole=True)
    for name in names_in(working):
        if name.startswith("checkpoint-") and working / name not in kept:
            remove(working / name)


def take_over(checkpoint: Path) -> Path:
    """Move a new checkpoint out of the loop's folder, which goes after the report, into a folder of its own."""
    return checkpoint.rename(Path(tempfile.mkdtemp(prefix="raydelta-", dir=checkpoint.parents[1])) / checkpoint.name)


def run_loop(job: Job, large: Mapping[str, TrainingSet], place: Place, report: Any, resume: Path | None) -> None:
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
    domains = ("synthetic",) if job.kind == "expert" else ("synthetic", "real")
    manifest = {
        "kind": job.kind,
        "taxonomy": job.taxonomy.model_dump(mode="json"),
        "size": [job.config.data.width, job.config.data.height],
        "normalisation": NORMALISATION,
        "data": {domain: _describe(getattr(job.config.data, domain)) for domain in domains},
        "metrics": metrics,
        "labels_train": train_ids,
        "labels_val": validation_ids,
        "expert": job.expert.name if job.expert else None,
        "translator": job.translator.directory.name if job.translator else None,
        "student": job.student.directory.name if job.student else None,
        "members": [member.directory.name for member in job.members],
    }

    def complete() -> None:
        if job.own_expert is not None:
            _copy(job.own_expert, job.directory / f"{OWN}{job.own_expert.suffix}")
        keep_weights(checkpoint, job.directory / "checkpoint")
        publish(job.directory / "checkpoint", whole=True)
        write_atomically(job.directory / CURVE, format_curve(read_curve(curve)))
        complete_stage(job.directory, manifest)

    patiently(job.directory.parent, complete)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        replace_directory(source, target)
        publish(target, whole=True)
    else:
        write_atomically(target, source.read_bytes())


def _describe(uri: str) -> dict[str, Any]:
    """What a model card says of a data set."""
    manifest = read_manifest(uri)
    splits = {name: {"images": split.rows, "labelled": split.labelled} for name, split in manifest.splits.items()}
    return {"name": manifest.name, "domain": manifest.domain, "splits": splits}


def working_directory(job: Job) -> Path:
    """Where an unfinished training keeps its checkpoints and curve; removed when it is published."""
    return job.directory.parent / "unfinished" / job.directory.name


def prune(job: Job) -> bool:
    """Remove the checkpoints of a training that ended early; its curve stays, for a sweep that is begun anew.

    Returns:
        False if a process still trains it, and nothing was removed.
    """
    working = working_directory(job)
    try:
        with exclusive(job.directory, wait=False):
            publish_copy(working / CURVE)
            for name in names_in(working):
                if name.startswith("checkpoint-") or (working / name).is_dir():
                    remove(working / name)
    except BlockingIOError:
        return False
    return True
