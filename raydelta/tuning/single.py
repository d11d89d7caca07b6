"""One training by itself: ``raydelta train``."""

from pathlib import Path
from typing import Any

from raydelta.compute.asked import addresses_of, remember
from raydelta.compute.cluster import ensure_ray
from raydelta.config import Config, override, without_tracking
from raydelta.data.prepare import check_data, prepare_data
from raydelta.errors import UserError
from raydelta.parsing import flatten
from raydelta.progress import Progress
from raydelta.recipes import METHODS, RECIPES, Kind, find_method
from raydelta.storage.bucket import open_runs
from raydelta.training.curve import losses_of
from raydelta.training.job import Job, make_job
from raydelta.training.on_ray import train_on_ray
from raydelta.training.stage import read_stage
from raydelta.tuning import trackers
from raydelta.tuning.start import check_runs


def train_expert(config: Config, runs: str | Path = "runs") -> Job:
    """Train the expert on the running Ray or a private one, unless the same one was trained before.

    Data sets are opened, imported or made first.

    Args:
        config: from ``load_config``.
        runs: output directory, or a bucket (``s3://bucket/runs``).

    Returns:
        the finished job; its ``directory`` holds the checkpoint.

    Raises:
        UserError: bad data or settings, or the cluster cannot give so many workers.
        TrainingError: a loss is not finite.
    """
    return _train("expert", config, runs)


def train_translator(config: Config, runs: str | Path = "runs") -> Job:
    """Train one translator, the expert before it and the student that teaches it, unless these were trained before.

    Args:
        config: from ``load_config``.
        runs: output directory, or a bucket (``s3://bucket/runs``).

    Returns:
        the finished job; its ``directory`` holds the checkpoint.

    Raises:
        UserError: as ``train_expert``, or guidance is asked for without labels.
        TrainingError: a loss is not finite.
    """
    return _train("translator", config, runs)


def train_row(row: str, config: Config, runs: str | Path = "runs") -> Job:
    """Train a row of the table, such as ``joint training``, and what it builds on, unless these were trained before.

    Args:
        row: as the table names it, or short: ``joint-training``; it sets its own fields of the config.
        config: from ``load_config``.
        runs: output directory, or a bucket (``s3://bucket/runs``).

    Returns:
        the finished job; its ``directory`` holds the checkpoint.

    Raises:
        UserError: as ``train_translator``, or there is no such row, or it is an ensemble, which trains nothing itself.
        TrainingError: a loss is not finite.
    """
    name = find_method(row)
    method = METHODS[name]
    if members := RECIPES[method.kind].members:
        rows = ["guided" if member == "translator" else member for member in members]
        raise UserError(f"{name} is made of {' and '.join(rows)}, and trains nothing itself: train these")
    return _train(method.kind, override(config, method.overrides), runs)


def _train(kind: Kind, config: Config, runs: str | Path) -> Job:
    remember(addresses_of(config).values())  # a program has named them, or a command that has checked them
    check_data(config)
    runs = open_runs(runs, write=True).resolve()
    check_runs(runs)
    ensure_ray()
    tracking, config = config.tracking, without_tracking(prepare_data(config, runs))
    with trackers.open_trackers(tracking, runs):
        expert = _train_one(make_job("expert", config, runs))
        if kind == "expert":
            return expert
        job = make_job(kind, config, runs, expert.directory)
        for parent in job.parents:
            _train_one(parent)
        return _train_one(job)


def _train_one(job: Job) -> Job:
    name, progress = job.directory.name, Progress(job.kind)

    def on_report(metrics: dict[str, Any]) -> None:
        progress.update(metrics["step"], metrics["steps"], note_of(metrics))
        trackers.log(name, metrics)

    if not job.done:
        trackers.start(trackers.Run(name, job.kind, flatten(job.config.model_dump(mode="json"))))
        train_on_ray(job, on_report)
        trackers.end(name, ok=True)
    stage = read_stage(job.directory)
    assert stage is not None
    progress.finish(f"{stage['metrics']['step']} steps  {note_of(stage['metrics'])}  {job.directory.name}")
    return job


def note_of(metrics: dict[str, Any]) -> str:
    """The few figures of a training that fit a line of progress."""
    parts = []
    losses = losses_of(metrics)
    if "cross_entropy" in losses:
        parts.append(f"loss {losses['cross_entropy']:.2f}")
    if "miou" in metrics:
        parts.append(f"validation mIoU {metrics['miou']:.1f} %")
    parts.append(f"{metrics['images_per_second']:.0f} images/s")
    if metrics.get("gflops"):
        parts.append(f"{metrics['gflops']:.0f} GFLOP/s")
    parts.append(f"data wait {100 * metrics['data_wait']:.1f} %")
    return "  ".join(parts)
