"""What each training is made of: its networks, its streams, where its weights start. One place to add a method.

A job is one training and the stage directory that it becomes. The parts are put together here, in the process that
trains; the loop is in training.py, and how a job gets to a process in workers.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raydelta import checkpoint
from raydelta.appearance import build_randomise, swap_amplitude
from raydelta.config import Config, load_config, override
from raydelta.data.augment import Batch, build_augment, build_colour
from raydelta.data.shards import data_fingerprint, is_plain, list_ids, read_manifest
from raydelta.data.streams import Images, MemoryStream, RayStream, Stream, load_images
from raydelta.errors import UserError
from raydelta.evaluation import class_ious, confusion_matrix, mean_iou
from raydelta.expert import SegmenterTraining, build_predictor, freeze
from raydelta.labels import check_bought, choose_labels
from raydelta.networks import Generator, build_segmenter
from raydelta.place import Place
from raydelta.recipes import ENSEMBLES, METHODS, RECIPES, UNGUIDED, Kind, Recipe
from raydelta.stages import fingerprint, read_stage
from raydelta.student import Appearance, StudentTraining, ensemble
from raydelta.training import Training, hash_seed
from raydelta.translator import TranslatorTraining

HELD_OUT = 64
"""At most this many synthetic training images (or a tenth) are kept from the expert's training to validate it."""


class Job(BaseModel):
    """One training; ``directory`` is the stage it becomes, named after everything that decides its result."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    config: Config  # data.synthetic and data.real are data sets on disk by now, not names of built-in ones
    directory: Path
    expert: Path | None = None
    translator: "Job | None" = None  # whose S2R translates its synthetic images; of a translator, where it starts
    student: "Job | None" = None  # where it starts
    members: tuple["Job", ...] = ()  # of the ensemble that it is, or that teaches it

    @property
    def parents(self) -> list["Job"]:
        """All that has to be trained before it, in order, but for the expert."""
        direct = [job for job in (self.translator, self.student, *self.members) if job is not None]
        ordered = [job for parent in direct for job in [*parent.parents, parent]]
        return list({job.directory: job for job in ordered}.values())

    @property
    def recipe(self) -> Recipe | None:
        """What a segmenter for photographs is trained on; None for the other kinds."""
        return RECIPES.get(self.kind)

    @property
    def done(self) -> bool:
        """Whether the stage is complete."""
        return read_stage(self.directory) is not None

    @property
    def large_sets(self) -> tuple[str, ...]:
        """Which of the large training sets it draws from."""
        if self.recipe is None:
            return ("synthetic",) if self.kind == "expert" else ("synthetic", "real")
        return ("synthetic",) * (self.recipe.synthetic is not None) + ("real",) * self.recipe.photographs

    @property
    def budget(self) -> int:
        """Labelled training images; -1 for all."""
        if self.recipe is None:
            guided = self.kind == "translator" and self.config.guidance.weight > 0
            return self.config.labels.budget if guided or self.kind in ENSEMBLES else 0
        return {"budget": self.config.labels.budget, "all": -1, "none": 0}[self.recipe.labels]

    @property
    def batches(self) -> dict[str, int]:
        """Images a step from each stream, over all workers."""
        config = self.config
        if self.kind == "expert":
            return {"synthetic": config.expert.batch}
        if self.recipe is None:
            guided = {"labelled": config.guidance.batch} if config.guidance.weight > 0 else {}
            return dict.fromkeys(("synthetic", "real"), config.translator.batch) | guided
        supervised = ["synthetic"] * (self.recipe.synthetic is not None) + ["labelled"] * (self.recipe.labels != "none")
        half = config.student.batch // 2
        return dict.fromkeys(supervised, config.student.batch // len(supervised)) | (
            {"real": half} if self.recipe.photographs else {}
        )

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        if self.kind == "expert":
            return self.config.expert.steps
        return self.config.translator.steps if self.kind == "translator" else self.config.student.steps


def make_job(kind: Kind, config: Config, runs: Path, expert: Path | None = None) -> Job:
    """The job of a kind under a config, with the jobs it builds on; its directory in ``runs`` named by kind and inputs.

    Two configs that differ only in what this training does not use share one directory. How it runs (``compute``) is
    no input, but for the precision.
    """
    recipe = RECIPES.get(kind)
    translator = student = None
    if kind == "translator" and config.translator.start is not None:
        translator = _find_start(config, runs)
    if recipe is not None and recipe.synthetic == "translated":
        at = override(config, UNGUIDED) if recipe.labels == "none" else config
        translator = make_job("translator", at, runs, expert)
    if recipe is not None and recipe.start == "student":
        student = make_job("student", config, runs, expert)
    taught_by = "ensemble" if recipe is not None and recipe.teacher == "ensemble" else kind
    members = tuple(make_job(member, config, runs, expert) for member in ENSEMBLES.get(taught_by, ()))
    parents = [job.directory.name for job in (translator, student, *members) if job is not None]

    tree = config.model_dump(mode="json")
    inputs: dict[str, Any] = {name: tree[name] for name in _sections(kind, recipe)}
    if config.labels.ids is None:  # stages from before there was such a field keep their names
        tree["labels"].pop("ids")
    tree["translator"].pop("start")  # it is a parent
    inputs["size"] = [config.data.width, config.data.height]
    inputs["precision"] = config.compute.precision
    inputs["format"] = checkpoint.FORMAT
    inputs["synthetic"] = data_fingerprint(config.data.synthetic)
    if kind != "expert":
        assert expert is not None
        inputs["real"] = data_fingerprint(config.data.real)
        inputs["expert"] = expert.name
        inputs["parents"] = list(dict.fromkeys(parents))
        if kind == "translator" and config.guidance.weight == 0:  # labels only validate, guidance is unused
            inputs["guidance"] = None
        if (kind == "translator" and config.guidance.weight == 0) or (recipe is not None and recipe.labels != "budget"):
            inputs["labels"] = {"validation": config.labels.validation}
            if config.labels.ids is not None and config.labels.ids.validation:
                inputs["labels"]["ids"] = config.labels.ids.validation
    name = f"{kind.replace(', ', '-').replace(' ', '-').lower()}-{fingerprint(inputs)}"
    return Job(
        kind=kind,
        config=config,
        directory=runs / name,
        expert=expert,
        translator=translator,
        student=student,
        members=members,
    )


def _find_start(config: Config, runs: Path) -> Job:
    """The translator that ``translator.start`` names.

    Raises:
        UserError: it is none, not finished, or its networks are others.
    """
    name = config.translator.start
    assert name is not None
    if not is_plain(name) or "/" in name:
        raise UserError(f"translator.start = {name!r}: give the name of a translator's directory in {runs}")
    job = read_job(runs / name)
    if job.kind != "translator":
        raise UserError(f"translator.start = {name!r}: is a finished {job.kind}, not a translator")
    for section in ("generator", "discriminator"):
        if getattr(job.config, section) != getattr(config, section):
            raise UserError(
                f"translator.start = {name!r}: has another {section} ({getattr(job.config, section)}); set {section}.* "
                "to the same"
            )
    return job


def _sections(kind: Kind, recipe: Recipe | None) -> list[str]:
    """The sections of the config that a training uses itself."""
    if kind == "expert":
        return ["seed", "augment", "segmenter", "expert"]
    if kind in ENSEMBLES:
        return ["seed", "labels"]
    if recipe is None:
        return ["seed", "labels", "augment", "generator", "discriminator", "translator", "guidance", "cycle"]
    own = ["seed", "labels", "augment", "segmenter", "student"]
    own += ["appearance"] * (recipe.synthetic not in (None, "plain"))
    return own + ["self_training"] * (recipe.teacher is not None)


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

    if "labelled" in job.batches:
        if labelled is None:
            raise UserError(_no_labels(job))
        sets["labelled"] = labelled

    training: SegmenterTraining | TranslatorTraining
    if job.kind == "translator":
        assert job.expert is not None
        training = TranslatorTraining(config, freeze(load_segmenter(job.expert, classes)), place)
        if job.translator is not None:
            for name, network in training.networks().items():
                network.load_state_dict(checkpoint.read_weights(job.translator.directory / "checkpoint", name))
    elif job.kind == "expert":
        training = SegmenterTraining(build_segmenter(config.segmenter, classes), config.expert.learning_rate, place)
        images = sets["synthetic"]
        if isinstance(images, Images):
            kept = max(1, len(images) - min(HELD_OUT, len(images) // 10))
            sets["synthetic"], validation = images.take(slice(kept)), images.take(slice(kept, None))
    else:
        training = _build_student(job, classes, place)

    # Colour is the translator's subject. What is translated or has pseudo-labels is jittered afterwards, in the step.
    plain = {"real"}
    if job.kind == "translator":
        plain = {"real", "synthetic", "labelled"}
    elif job.recipe is not None and job.recipe.synthetic == "translated":
        plain = {"real", "synthetic"}
    unused = {"real", "synthetic"} if job.kind == "translator" else {"real"}
    geometry, both = (build_augment(config.augment, data.height, data.width, colour) for colour in (False, True))
    streams: dict[str, Stream] = {}
    for number, (name, images) in enumerate(sets.items()):
        if isinstance(images, Images):
            streams[name] = MemoryStream(images, job.batches[name], (config.seed, number), place)
        else:
            streams[name] = RayStream(images, job.batches[name], config.seed, place)

    def augment_stream(name: str, images: Tensor, labels: Tensor | None) -> Batch:
        return (geometry if name in plain else both)(images, None if name in unused else labels)

    def validate() -> dict[str, float]:
        if validation is None or len(validation) == 0:
            return {}
        return {"miou": mean_iou(class_ious(confusion_matrix(training.predictor(), validation, classes, place)))}

    return Parts(training, streams, augment_stream, validate)


def _build_student(job: Job, classes: int, place: Place) -> StudentTraining:
    config, recipe = job.config, job.recipe
    assert recipe is not None and job.expert is not None
    start = job.student.directory if recipe.start == "student" and job.student else job.expert
    network = (
        build_segmenter(config.segmenter, classes) if recipe.start == "scratch" else load_segmenter(start, classes)
    )
    teacher: Any = recipe.teacher
    if recipe.teacher == "ensemble":
        teacher = ensemble([load_model(member, place).predict for member in job.members])
    return StudentTraining(network, config, place, _build_appearance(job, place), teacher)


def _build_appearance(job: Job, place: Place) -> Appearance:
    """How the job's synthetic images look to the student."""
    config, recipe = job.config, job.recipe
    assert recipe is not None
    if recipe.synthetic == "FDA":
        return lambda synthetic, real: swap_amplitude(
            synthetic, _as_many(real, len(synthetic)), config.appearance.bandwidth
        )
    if recipe.synthetic == "randomised":
        randomise = build_randomise(config.appearance.strength)
        return lambda synthetic, real: randomise(synthetic)
    if recipe.synthetic == "translated":
        assert job.translator is not None
        s2r, jitter = load_generator(job.translator.directory, "s2r_ema", place), build_colour(config.augment)

        def translate(synthetic: Tensor, real: Tensor | None) -> Tensor:
            count = round(config.appearance.translated * len(synthetic))
            return jitter(torch.cat([s2r(synthetic[:count]), synthetic[count:]]))

        return translate
    return lambda synthetic, real: synthetic


def _as_many(images: Tensor | None, count: int) -> Tensor:
    assert images is not None
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


def read_job(directory: Path) -> Job:
    """The job behind a complete stage directory, as a run has left it.

    Raises:
        UserError: the directory is no finished training, or the expert beside it is gone.
    """
    stage = read_stage(directory)
    if stage is None or "kind" not in stage:
        raise UserError(f"{directory}: not a finished training of raydelta (no stage.json that says so)")
    beside: dict[str, Path] = {}
    named = [stage.get(kind) for kind in ("expert", "translator", "student")] + list(stage.get("members") or ())
    if not all(name is None or (isinstance(name, str) and is_plain(name) and "/" not in name) for name in named):
        raise UserError(f"{directory}: its stage.json names what does not lie beside it; not read")
    for kind in ("expert", "translator", "student"):
        if stage.get(kind):
            beside[kind] = directory.parent / stage[kind]
            if read_stage(beside[kind]) is None:
                raise UserError(f"{directory}: its {kind} {beside[kind]} is missing; it has to lie beside it")
    return Job(
        kind=stage["kind"],
        config=checkpoint.read_config(directory / "checkpoint"),
        directory=directory,
        expert=beside.get("expert"),
        translator=read_job(beside["translator"]) if "translator" in beside else None,
        student=read_job(beside["student"]) if "student" in beside else None,
        members=tuple(read_job(directory.parent / name) for name in stage.get("members", ())),
    )


def find_job(run: Path, method: str | None = None) -> Job:
    """The job of a finished training, or of a row of a sweep's table with the best trial's settings.

    Args:
        method: which row of a sweep, one of ``METHODS``; its best translator, if None.

    Raises:
        UserError: the directory is neither, or the sweep has not trained that row.
    """
    if not (run / "best.yaml").exists():
        if method is not None:
            raise UserError(f"{run}: not a sweep, so it has no row {method!r}; leave --method out")
        return read_job(run)
    row = METHODS.get(method or "guided")
    if row is None:
        raise UserError(f"--method {method!r}: choose of {', '.join(METHODS)}")
    config, runs = load_config(file=run / "best.yaml"), run.resolve().parent
    job = make_job(row.kind, override(config, row.overrides), runs, make_job("expert", config, runs).directory)
    if job.kind not in ENSEMBLES:
        return read_job(job.directory)
    missing = [part.directory.name for part in job.members if not part.done]
    if missing:
        raise UserError(f"{run}: its {method} is not there, as {' and '.join(missing)} was not trained")
    return job


def load_labelled(job: Job) -> tuple[Images | None, Images | None]:
    """The labelled real images that the job may see: for training and for validation. No other label is read."""
    train, validation = label_ids(job)
    data = job.config.data
    size = (data.width, data.height)
    bought, held_out = (load_images(data.real, "train", size, ids=ids) if ids else None for ids in (train, validation))
    if bought is not None and job.config.labels.shuffle:
        assert bought.labels is not None
        if len(bought) < 2:
            raise UserError("labels.shuffle = True: one labelled image has no other to take a label from; buy two")
        # Their order is random, and none keeps its own.
        bought = replace(bought, labels=np.roll(bought.labels, 1, axis=0))
    return bought, held_out


def label_ids(job: Job) -> tuple[list[str], list[str]]:
    """The ids behind the job's label budget: training, validation."""
    if job.kind == "expert":
        return [], []
    samples = list_ids(job.config.data.real, "train")
    available = [(name, sequence) for name, sequence, labelled in samples if labelled]
    if job.config.labels.ids is not None:
        check_bought(job.config.labels.ids, {sample.id: sample.labelled for sample in samples})
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
    """The model of a complete stage (an ensemble: of its parts) on the place's device: images in [-1, 1] → logits."""
    classes = len(read_manifest(job.config.data.synthetic).taxonomy)
    if job.kind in ENSEMBLES:
        return Model(ensemble([load_model(member, place).predict for member in job.members]), None)
    if job.kind != "translator":
        return Model(build_predictor(load_segmenter(job.directory, classes).to(place.device)), None)
    assert job.expert is not None
    expert = freeze(load_segmenter(job.expert, classes)).to(place.device, place.dtype)
    translate = load_generator(job.directory, "r2s_ema", place)
    return Model(lambda images: expert(translate(images).to(place.dtype)).float(), translate)


def read_generator(directory: Path, name: str) -> nn.Module:
    """A generator of a complete translator stage, frozen, on the CPU."""
    path = directory / "checkpoint"
    settings = checkpoint.read_config(path).generator
    generator = Generator(settings.width, settings.blocks, settings.identity_start)
    generator.load_state_dict(checkpoint.read_weights(path, name))
    return freeze(generator)


def load_generator(directory: Path, name: str, place: Place) -> Callable[[Tensor], Tensor]:
    """A generator of a complete translator stage: images in [-1, 1] → fp32 images, clipped to [-1, 1]."""
    generator = read_generator(directory, name).to(place.device)

    def translate(images: Tensor) -> Tensor:
        with torch.no_grad():
            return generator(images.to(place.dtype)).float().clamp(-1, 1)

    return translate


def _no_labels(job: Job) -> str:
    config = job.config
    budget = f"{config.data.real} has none to train on (labels.budget = {config.labels.budget})"
    if job.kind != "translator":
        return f"method {job.kind!r} needs labelled photographs, but {budget}"
    return (
        f"guidance.weight = {config.guidance.weight} needs labelled photographs, but {budget}; label some, or set "
        "guidance.weight=0 for plain CycleGAN"
    )
