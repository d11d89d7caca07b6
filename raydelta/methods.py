"""What each training is made of: its networks, its streams, where its weights start. One place to add a method.

A job is one training and the stage directory that it becomes. The parts are put together here, in the process that
trains; the loop is in training.py, and how a job gets to a process in workers.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raydelta import checkpoint
from raydelta.config import Config
from raydelta.data.augment import Batch, build_augment
from raydelta.data.shards import data_fingerprint, list_ids, read_manifest
from raydelta.data.streams import Images, MemoryStream, RayStream, Stream, load_images
from raydelta.errors import UserError
from raydelta.evaluation import class_ious, confusion_matrix, mean_iou
from raydelta.expert import SegmenterTraining, build_predictor, freeze
from raydelta.labels import choose_labels
from raydelta.networks import Generator, build_segmenter
from raydelta.place import Place
from raydelta.stages import fingerprint, read_stage
from raydelta.training import Training, hash_seed
from raydelta.translator import TranslatorTraining

Kind = Literal["expert", "translator", "fine-tuned", "from scratch", "joint training", "oracle"]

HELD_OUT = 64
"""At most this many synthetic training images (or a tenth) are kept from the expert's training to validate it."""


@dataclass(frozen=True)
class Baseline:
    """A segmenter trained without translation on the same labels."""

    from_expert: bool  # else from scratch
    synthetic: bool  # synthetic images in every batch, one half
    all_labels: bool = False


BASELINES: dict[str, Baseline] = {
    "fine-tuned": Baseline(from_expert=True, synthetic=False),
    "from scratch": Baseline(from_expert=False, synthetic=False),
    "joint training": Baseline(from_expert=True, synthetic=True),
    "oracle": Baseline(from_expert=True, synthetic=True, all_labels=True),
}


class Job(BaseModel):
    """One training; ``directory`` is the stage it becomes, named after everything that decides its result."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    config: Config  # data.synthetic and data.real are data sets on disk by now, not names of built-in ones
    directory: Path
    expert: Path | None = None

    @property
    def done(self) -> bool:
        """Whether the stage is complete."""
        return read_stage(self.directory) is not None

    @property
    def large_sets(self) -> tuple[str, ...]:
        """Which of the large training sets it draws from."""
        if self.kind == "expert":
            return ("synthetic",)
        if self.kind == "translator":
            return ("synthetic", "real")
        return ("synthetic",) if BASELINES[self.kind].synthetic else ()

    @property
    def budget(self) -> int:
        """Labelled training images; -1 for all."""
        if self.kind == "expert":
            return 0
        if self.kind == "translator" and self.config.guidance.weight == 0:
            return 0
        return -1 if self.kind in BASELINES and BASELINES[self.kind].all_labels else self.config.labels.budget

    @property
    def batches(self) -> tuple[int, ...]:
        """Images a step from each stream, over all workers."""
        if self.kind == "expert":
            return (self.config.expert.batch,)
        if self.kind == "translator":
            return self.config.translator.batch, self.config.guidance.batch
        return (self.config.baseline.batch // (2 if BASELINES[self.kind].synthetic else 1),)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        if self.kind == "expert":
            return self.config.expert.steps
        return self.config.translator.steps if self.kind == "translator" else self.config.baseline.steps


def make_job(kind: Kind, config: Config, runs: Path, expert: Path | None = None) -> Job:
    """The job of a kind under a config, its directory in ``runs`` named by kind and inputs.

    Two configs that differ only in what this training does not use share one directory. How it runs (``compute``) is
    no input, but for the precision.
    """
    sections = {
        "expert": ("seed", "augment", "segmenter", "expert"),
        "translator": ("seed", "labels", "augment", "generator", "discriminator", "translator", "guidance", "cycle"),
    }.get(kind, ("seed", "labels", "augment", "segmenter", "baseline"))
    tree = config.model_dump(mode="json")
    inputs: dict[str, Any] = {name: tree[name] for name in sections}
    inputs["size"] = [config.data.width, config.data.height]
    inputs["precision"] = config.compute.precision
    inputs["synthetic"] = data_fingerprint(config.data.synthetic)
    if kind != "expert":
        assert expert is not None
        inputs["real"] = data_fingerprint(config.data.real)
        inputs["expert"] = expert.name
        if kind == "translator" and config.guidance.weight == 0:  # unguided: labels only validate, guidance is unused
            inputs["labels"] = {"validation": config.labels.validation}
            inputs["guidance"] = None
        if kind in BASELINES and BASELINES[kind].all_labels:
            inputs["labels"] = {"validation": config.labels.validation}
    name = f"{kind.replace(' ', '-')}-{fingerprint(inputs)}"
    return Job(kind=kind, config=config, directory=runs / name, expert=expert)


@dataclass(frozen=True)
class Parts:
    """A training ready for the loop."""

    training: Training
    streams: dict[str, Stream]
    augment: Callable[[str, Tensor, Tensor | None], Batch]
    validate: Callable[[], dict[str, float]]


def assemble(job: Job, large: Mapping[str, Any], place: Place) -> Parts:
    """Networks, streams and validation of a job.

    Args:
        large: the large training sets by domain, as Images or as Ray Data iterators.

    Raises:
        UserError: the label budget cannot be met, or guidance is asked for without labels.
    """
    config, data = job.config, job.config.data
    classes = len(read_manifest(data.synthetic).taxonomy)
    torch.manual_seed(hash_seed(config.seed))  # the same start weights on every rank
    labelled, validation = load_labelled(job)
    sets = dict(large)

    training: SegmenterTraining | TranslatorTraining
    if job.kind == "translator":
        assert job.expert is not None
        expert = freeze(load_segmenter(job.expert, classes))
        training = TranslatorTraining(config, expert, place)
        batch = dict.fromkeys(("synthetic", "real"), config.translator.batch)
        if config.guidance.weight > 0:
            if labelled is None:
                raise UserError(_no_labels(config))
            sets["labelled"], batch["labelled"] = labelled, config.guidance.batch
    elif job.kind == "expert":
        training = SegmenterTraining(build_segmenter(config.segmenter, classes), config.expert.learning_rate, place)
        images = sets["synthetic"]
        if isinstance(images, Images):
            kept = max(1, len(images) - min(HELD_OUT, len(images) // 10))
            sets["synthetic"], validation = images.take(slice(kept)), images.take(slice(kept, None))
        batch = {"synthetic": config.expert.batch}
    else:
        baseline = BASELINES[job.kind]
        if labelled is None:
            raise UserError(f"method {job.kind!r} needs labelled photographs: labels.budget = {config.labels.budget}")
        assert job.expert is not None
        network = (
            load_segmenter(job.expert, classes) if baseline.from_expert else build_segmenter(config.segmenter, classes)
        )
        training = SegmenterTraining(network, config.baseline.learning_rate, place)
        sets["labelled"] = labelled
        share = config.baseline.batch // 2 if baseline.synthetic else config.baseline.batch
        batch = dict.fromkeys(sets, share)

    colour = job.kind != "translator"
    augment = build_augment(config.augment, data.height, data.width, colour)
    streams: dict[str, Stream] = {}
    for number, (name, images) in enumerate(sets.items()):
        if isinstance(images, Images):
            streams[name] = MemoryStream(images, batch[name], (config.seed, number), place)
        else:
            streams[name] = RayStream(images, batch[name], config.seed, place)
    labels_used = job.kind != "translator"

    def augment_stream(name: str, images: Tensor, labels: Tensor | None) -> Batch:
        return augment(images, labels if labels_used or name == "labelled" else None)

    def validate() -> dict[str, float]:
        if validation is None or len(validation) == 0:
            return {}
        return {"miou": mean_iou(class_ious(confusion_matrix(training.predictor(), validation, classes, place)))}

    return Parts(training, streams, augment_stream, validate)


def read_job(directory: Path) -> Job:
    """The job behind a complete stage directory, as a run has left it.

    Raises:
        UserError: the directory is no finished training, or the expert beside it is gone.
    """
    stage = read_stage(directory)
    if stage is None or "kind" not in stage:
        raise UserError(f"{directory}: not a finished training of raydelta (no stage.json that says so)")
    expert = directory.parent / stage["expert"] if stage["expert"] else None
    if expert is not None and read_stage(expert) is None:
        raise UserError(f"{directory}: its expert {expert} is missing; it has to lie beside it")
    return Job(
        kind=stage["kind"], config=checkpoint.read_config(directory / "checkpoint"), directory=directory, expert=expert
    )


def load_labelled(job: Job) -> tuple[Images | None, Images | None]:
    """The labelled real images that the job may see: for training and for validation. No other label is read."""
    train, validation = label_ids(job)
    data = job.config.data
    size = (data.width, data.height)
    return tuple(load_images(data.real, "train", size, ids=ids) if ids else None for ids in (train, validation))  # type: ignore[return-value]


def label_ids(job: Job) -> tuple[list[str], list[str]]:
    """The ids behind the job's label budget: training, validation."""
    if job.kind == "expert":
        return [], []
    available = [(name, sequence) for name, sequence, labelled in list_ids(job.config.data.real, "train") if labelled]
    if not available:
        return [], []  # translation works without labels; whoever needs one says so
    return choose_labels(available, job.config.labels, job.config.seed, job.budget)


def load_segmenter(directory: Path, classes: int) -> nn.Module:
    """The segmenter of a complete expert or baseline stage, on the CPU."""
    path = directory / "checkpoint"
    network = build_segmenter(checkpoint.read_config(path).segmenter, classes)
    network.load_state_dict(checkpoint.read_weights(path, "segmenter"))
    return network


@dataclass(frozen=True)
class Model:
    """A trained job for inference; ``translate`` is None where there is no translator."""

    predict: Callable[[Tensor], Tensor]
    translate: Callable[[Tensor], Tensor] | None


def load_model(job: Job, place: Place) -> Model:
    """The model of a complete stage on the place's device: images in [-1, 1] → fp32 logits."""
    classes = len(read_manifest(job.config.data.synthetic).taxonomy)
    if job.kind != "translator":
        return Model(build_predictor(load_segmenter(job.directory, classes).to(place.device)), None)
    assert job.expert is not None
    path = job.directory / "checkpoint"
    expert = freeze(load_segmenter(job.expert, classes)).to(place.device, place.dtype)
    settings = checkpoint.read_config(path).generator
    r2s = freeze(Generator(settings.width, settings.blocks, settings.identity_start)).to(place.device)
    r2s.load_state_dict(checkpoint.read_weights(path, "r2s_ema"))

    def translate(images: Tensor) -> Tensor:
        return r2s(images.to(place.dtype)).clamp(-1, 1)

    return Model(lambda images: expert(translate(images)).float(), translate)


def _no_labels(config: Config) -> str:
    return (
        f"guidance.weight = {config.guidance.weight} needs labelled photographs, but {config.data.real} has none "
        f"to train on (labels.budget = {config.labels.budget}); label some, or set guidance.weight=0 for plain CycleGAN"
    )
