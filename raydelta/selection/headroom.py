"""``raydelta select --headroom``: how much could choosing bring at all? Before a strategy is tried, chance is measured.

Random label sets of one budget are trained alike; the best of them less their mean is what a perfect choice among them
would have gained. Several trainings of the first set that differ in their seed alone say how much of the spread is no
matter of labels. Every training is a stage, so the same command after an interruption trains what is left.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import NormalDist, mean, stdev

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from raydelta.compute.cluster import ensure_ray
from raydelta.config import override
from raydelta.data.labels import order_labels
from raydelta.data.prepare import evaluation_split
from raydelta.data.shards import list_ids, read_manifest
from raydelta.data.streams import is_streamed, load_images
from raydelta.errors import UserError
from raydelta.progress import Progress, clock
from raydelta.recipes import METHODS, MethodName
from raydelta.results.evaluate import evaluate_on_ray
from raydelta.selection.select import find_learner
from raydelta.storage.files import write_atomically
from raydelta.training.assemble import open_large_sets
from raydelta.training.job import Job, check_trust, label_ids, make_job
from raydelta.training.on_ray import train_on_ray
from raydelta.training.stage import read_stage

METHOD: MethodName = "joint training"
"""What each set is trained with. It needs no translator, so a set costs a fraction of what one would."""

SETS = 16
REPEATS = 4  # trainings of the first set, with other seeds
WORTH = 2.0
"""Points of mIoU that the best set has to be above the mean before choosing is worth the trouble."""

TIMED_STEPS = 10
RESAMPLES = 2000
FILE = "headroom.json"
"""Where a run keeps it; the report shows its findings."""


class Explained(BaseModel):
    """How much of the spread one property of the label sets explains, and how much it would by chance."""

    property: str
    share: float  # R² of a straight line
    chance: float  # the R² that 95 % of random orders stay below

    def __str__(self) -> str:
        verdict = "more than chance would" if self.share > self.chance else "no more than chance may"
        return f"{self.property}: {self.share:.0%} of the spread, {verdict} ({self.chance:.0%})"


class Headroom(BaseModel):
    """What random label sets of one budget come to."""

    method: str
    budget: int
    validation: int
    sets: list[list[str]]
    mious: list[float]  # percent, on the test images, one for each set
    repeats: list[float]  # the first set again with other seeds, its first value included
    explained: list[Explained]
    minutes: float  # of one device, all trainings together

    @property
    def gain(self) -> float:
        """Best less mean, in points."""
        return max(self.mious) - mean(self.mious)

    @property
    def noise(self) -> float:
        """Best less mean that so many trainings of one and the same set are expected to have."""
        return expected_maximum(len(self.mious)) * stdev(self.repeats)

    @property
    def left(self) -> float:
        """Best less mean that is expected of the sets themselves: the variance of the seeds is taken out."""
        variance = stdev(self.mious) ** 2 - stdev(self.repeats) ** 2
        return expected_maximum(len(self.mious)) * math.sqrt(max(0.0, variance))

    @property
    def advice(self) -> str:
        """One sentence that says what to do."""
        if self.gain < WORTH:
            return (
                f"Do not bother choosing: the best of {len(self.sets)} random sets is {self.gain:.1f} points above "
                "their mean. Spread labels over time and drives (--strategy stride)."
            )
        if self.left < WORTH:
            return (
                f"Hard to say: the best set is {self.gain:.1f} points above the mean, but trainings of one set alone "
                f"would give {self.noise:.1f}, which leaves about {self.left:.1f} to the choice. Spread labels over "
                "time and drives (--strategy stride), or train longer."
            )
        return f"Choosing may pay: the best of {len(self.sets)} random sets is {self.gain:.1f} points above their mean."

    def lines(self) -> list[str]:
        """Sentences for a person."""
        return [
            f"{len(self.sets)} random sets of {self.budget} labels, {self.method}: {mean(self.mious):.1f} ± "
            f"{stdev(self.mious):.1f} % mIoU, {min(self.mious):.1f} to {max(self.mious):.1f}",
            f"one set trained {len(self.repeats)} times: ± {stdev(self.repeats):.1f}, which alone would put the best "
            f"{self.noise:.1f} points above the mean",
            *map(str, self.explained),
            self.advice,
        ]


def measure_headroom(
    run: Path,
    budget: int | None = None,
    sets: int = SETS,
    announce: Callable[[str], None] = print,
    *,
    method: str | None = None,
    trust: bool = False,
) -> Headroom:
    """Train random label sets of a run's budget alike, evaluate them, and write ``headroom.json`` into its directory.

    Args:
        run: the directory of a finished training that labels teach, or of a sweep. Its data and settings are taken.
        budget: labels in a set; the run's own if None.
        announce: is told what it will cost before it starts.
        method: which row of a sweep; its best translator, if None.
        trust: open its data sets also at addresses that no command of yours has named.

    Raises:
        UserError: too few labels are known for the sets to differ, or no labelled test images are there.
    """
    job = find_learner(run, method)
    check_trust(job, trust)
    if evaluation_split(read_manifest(job.config.data.real)) is None:
        raise UserError(f"{job.config.data.real}: has no labelled test split to compare label sets on")
    jobs = plan(job, budget or job.config.labels.budget, sets)
    ensure_ray()
    left = [each for each in jobs if not each.done]
    if left:
        at_once = _at_once(left[0])
        announce(format_cost(len(left), left[0].steps, estimate_seconds(left[0]), at_once))
        train_all(left, at_once)
    progress = Progress("evaluation")
    rows = evaluate_on_ray([(METHOD, each) for each in jobs], _gpus(), progress)
    progress.finish(f"{len(jobs)} models")
    values = [row for row in rows if row.split == rows[0].split]  # not those of unseen sequences alone
    mious = [row.miou for row in values]
    whole = [label_ids(each)[0] for each in jobs[:sets]]
    found = Headroom(
        method=METHOD,
        budget=jobs[0].config.labels.budget,
        validation=jobs[0].config.labels.validation,
        sets=whole,
        mious=mious[:sets],
        repeats=[mious[0], *mious[sets:]],
        explained=explain(job, whole, mious[:sets]),
        minutes=sum(row.device_hours for row in values) * 60,
    )
    content = {"findings": found.lines()} | found.model_dump(mode="json")
    write_atomically(run / FILE, json.dumps(content, indent=1) + "\n")
    return found


def format_cost(trainings: int, steps: int, seconds: float, at_once: int) -> str:
    """``19 trainings (joint training, 80 steps) of about 0:12, 2 at once: about 2 minutes``."""
    minutes = math.ceil(math.ceil(trainings / at_once) * seconds / 60)
    together = f", {at_once} at once" if at_once > 1 else ""
    unit = "minute" if minutes == 1 else "minutes"
    return (
        f"{trainings} trainings ({METHOD}, {steps} steps) of about {clock(seconds)}{together}: about {minutes} {unit}"
    )


def estimate_seconds(job: Job) -> float:
    """What one training will take, from a few steps of it."""
    working = job.directory.parent / "unfinished" / f"timing-{job.directory.name}"
    steps = min(TIMED_STEPS, job.steps)
    timed = make_job(job.kind, override(job.config, {"student.steps": steps}), working, job.expert)
    try:
        train_on_ray(timed)
        stage = read_stage(timed.directory)
        assert stage is not None
        return stage["metrics"]["device_seconds"] / steps * job.steps
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _gpus() -> float:
    import ray

    return float(ray.cluster_resources().get("GPU", 0) > 0)


def _at_once(job: Job) -> int:
    """How many trainings fit side by side: one a GPU, else one a CPU; one, where its images stream."""
    import ray

    if any(is_streamed(images) for images in open_large_sets(job).values()):
        return 1
    total = ray.cluster_resources()
    return max(1, int(total.get("GPU", 0)) or int(total.get("CPU", 1)))


def train_all(jobs: Sequence[Job], at_once: int) -> None:
    """Train jobs to their end on Ray, some side by side. Those that are done stay when one fails or all is stopped.

    Raises:
        UserError: the input of one is bad.
        TrainingError: the loss of one is not finite.
    """
    progress = Progress("headroom")
    pool = ThreadPoolExecutor(at_once)
    try:
        trainings = [pool.submit(train_on_ray, job) for job in jobs]
        for done, training in enumerate(as_completed(trainings), 1):
            training.result()
            progress.update(done, len(jobs), "label sets trained")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    progress.finish(f"{len(jobs)} label sets trained")


def plan(job: Job, budget: int, sets: int) -> list[Job]:
    """The trainings: each set with the run's seed, then the first set with other seeds.

    Raises:
        UserError: fewer labels are known than make different sets.
    """
    data = job.config.data
    known = [(sample.id, sample.sequence) for sample in list_ids(data.real, "train") if sample.labelled]
    _, validation = label_ids(job)
    free = [name for name in order_labels(known, job.config.seed) if name not in set(validation)]
    if sets < 2 or budget < 1:
        raise UserError(f"{sets} sets of {budget} labels: at least 2 sets of 1 label are needed")
    if len(free) < 2 * budget:
        raise UserError(
            f"{data.real}: {len(free)} labels are known beside those that validate, too few for random sets of "
            f"{budget} that differ: measure with at most {len(free) // 2}, or on a data set with more labels"
        )
    random = np.random.default_rng([job.config.seed, 0x4EAD])
    chosen = [[free[index] for index in random.choice(len(free), budget, replace=False)] for _ in range(sets)]
    made_of = METHODS[METHOD]

    def training(names: list[str], seed: int) -> Job:
        ids = {"train": names, "validation": validation, "cells": None}
        fields = {"labels.ids": ids, "labels.budget": budget, "seed": seed, "compute.workers": 1}
        return make_job(
            made_of.kind, override(job.config, fields | dict(made_of.overrides)), job.directory.parent, job.expert
        )

    seed = job.config.seed
    first = [training(chosen[0], seed + 1 + turn) for turn in range(REPEATS - 1)]
    return [training(names, seed) for names in chosen] + first


def explain(job: Job, sets: Sequence[Sequence[str]], mious: Sequence[float]) -> list[Explained]:
    """How much of the spread the mix of drives and that of classes explain, each by a straight line.

    Reads the labels of the sets, which are trained on already.
    """
    data = job.config.data
    drives = {sample.id: sample.sequence for sample in list_ids(data.real, "train")}
    names = sorted({name for names in sets for name in names})
    labels = load_images(data.real, "train", data.size, ids=names).labels
    assert labels is not None
    pixels = {
        name: np.bincount(mask.ravel(), minlength=256)[: job.classes] for name, mask in zip(names, labels, strict=True)
    }
    by_drive = [np.unique([drives[name] for name in one], return_counts=True)[1] for one in sets]
    by_class = [np.sum([pixels[name] for name in one], axis=0) for one in sets]
    properties = {
        "drives (how evenly the set covers them)": [_evenness(counts) for counts in by_drive],
        "classes (how evenly the set covers them)": [_evenness(counts) for counts in by_class],
    }
    return [explain_by(name, np.array(values), np.array(mious)) for name, values in properties.items()]


def explain_by(name: str, values: NDArray[np.floating], mious: NDArray[np.floating], seed: int = 0) -> Explained:
    """R² of a straight line, and what it is for mIoU in a random order."""
    random = np.random.default_rng([seed, 0xE4])
    shuffled = [_correlation(values, random.permutation(mious)) ** 2 for _ in range(RESAMPLES)]
    return Explained(property=name, share=_correlation(values, mious) ** 2, chance=float(np.quantile(shuffled, 0.95)))


def _correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 1e-12 else 0.0


def _evenness(counts: NDArray[np.integer]) -> float:
    """The number of equal parts with the same entropy."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(shares * np.log(shares)).sum()))


def expected_maximum(count: int) -> float:
    """Mean of the largest of so many standard normal values; Blom 1958."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
