"""What each training is made of: its networks, its streams, its validation, and where its weights start.

``assemble`` runs in the process that trains.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raydelta.compute.device import Place
from raydelta.data.augment import build_augment, build_colour
from raydelta.data.labels import keep_bought
from raydelta.data.pixels import Batch
from raydelta.data.shards import list_ids, read_manifest
from raydelta.data.streams import Images, MemoryStream, RayStream, Stream, TrainingSet, load_images, stream_rows
from raydelta.errors import UserError
from raydelta.networks import build_segmenter
from raydelta.networks.layers import freeze
from raydelta.networks.own_expert import load_own_expert
from raydelta.storage.bucket import fetch
from raydelta.training import checkpoint
from raydelta.training.appearance import build_randomise, swap_amplitude
from raydelta.training.blend import BlendTraining
from raydelta.training.colours import ColourTraining
from raydelta.training.job import Job, label_ids
from raydelta.training.kept import KeptTraining
from raydelta.training.loop import hash_seed
from raydelta.training.losses import class_weights
from raydelta.training.metrics import class_ious, confusion_matrix, mean_iou
from raydelta.training.step import Training
from raydelta.training.student import Appearance, StudentTraining
from raydelta.training.supervised import Predict, SegmenterTraining
from raydelta.training.trained import agreement, ensemble, load_generator, load_model, load_segmenter
from raydelta.training.translator import TranslatorTraining

BYTES_PER_PIXEL = 4  # of a decoded image with its label


def open_large_sets(job: Job) -> dict[str, TrainingSet]:
    """The large training sets of a job: Images where their pixels fit ``data.cache_gib``, else a Ray Data set."""
    data = job.config.data
    opened: dict[str, TrainingSet] = {}
    for domain in job.large_sets:
        uri, labels = getattr(data, domain), domain == "synthetic"
        rows = read_manifest(uri).splits["train"].rows
        if rows * data.width * data.height * BYTES_PER_PIXEL <= data.cache_gib * 2**30:
            opened[domain] = load_images(uri, "train", data.size, labels=labels)
        else:
            opened[domain] = stream_rows(uri, "train", data.size, labels=labels, seed=job.config.seed)
    return opened


CALIBRATED = 96
"""At most so many images give a segmenter its batch-norm statistics."""

HELD_OUT = 64
"""At most this many synthetic training images (or a tenth) are kept from the expert's training to validate it."""


@dataclass(frozen=True)
class Parts:
    """A training ready for the loop."""

    training: Training
    streams: dict[str, Stream]
    augment: Callable[[str, Tensor, Tensor | None], Batch]
    validate: Callable[[], dict[str, float]]


def assemble(job: Job, large: Mapping[str, TrainingSet], place: Place) -> Parts:
    """Networks, streams and validation of a job.

    Args:
        large: the large training sets by domain.

    Raises:
        UserError: the label budget cannot be met, or guidance is asked for without labels.
    """
    config, data = job.config, job.config.data
    classes = job.classes
    torch.manual_seed(hash_seed(config.seed))  # the same start weights on every rank
    labelled, validation = load_labelled(job)
    sets: dict[str, TrainingSet] = dict(large)

    if "labelled" in job.batches:
        if labelled is None:
            raise UserError(_no_labels(job))
        sets["labelled"] = labelled

    training: Training
    if job.kind == "translator":
        assert job.expert is not None
        teacher = load_model(job.student, place).predict if job.student is not None else None
        training = TranslatorTraining(config, freeze(load_segmenter(job.expert, classes)), place, teacher)
        if job.translator is not None:
            networks = training.networks()
            start = checkpoint.read_networks(job.translator.directory / "checkpoint", networks)
            for name, weights in start.items():
                networks[name].load_state_dict(weights)
    elif job.kind == "expert":
        if job.own_expert is not None:
            fetch(job.own_expert)
            own = load_own_expert(job.own_expert, config.expert, config.segmenter, job.taxonomy.classes)
            training = KeptTraining(own, place)
        else:
            network, settings = build_segmenter(config.segmenter, classes), config.expert
            weights = {"synthetic": class_weights(read_manifest(data.synthetic).splits["train"].pixels)}
            training = SegmenterTraining(
                network,
                settings.learning_rate,
                place,
                ema=settings.ema,
                encoder_rate=config.segmenter.encoder_rate,
                weights=weights,
            )
        images = sets["synthetic"]
        if isinstance(images, Images):
            kept = max(1, len(images) - min(HELD_OUT, len(images) // 10))
            sets["synthetic"], validation = images.take(slice(kept)), images.take(slice(kept, None))
    elif job.kind == "blended":
        assert job.expert is not None
        training = BlendTraining(load_segmenter(job.expert, classes), config.adaptation.share, place)
    elif job.kind == "colours matched":
        assert job.expert is not None
        training = ColourTraining(freeze(load_segmenter(job.expert, classes)), place)
    else:
        training = _build_student(job, classes, labelled, place)

    # Colour is the translator's subject. What guides it, is translated or has pseudo-labels is jittered in the step.
    plain = {"real"}
    if job.kind == "translator":
        plain = {"real", "synthetic", "labelled"}
    elif job.recipe.synthetic == "translated" or job.recipe.section == "adaptation":
        plain = {"real", "synthetic"}
    elif job.kind == "expert" and config.expert.appearance == "plain":
        plain = {"synthetic"}
    unused = {"real", "synthetic"} if job.kind == "translator" else {"real"}
    cropped, zoomed, coloured = (
        build_augment(config.augment, data.height, data.width, zoom=zoom, colour=colour)
        for zoom, colour in ((False, False), (True, False), (True, True))
    )
    whole = {"real", "synthetic"} if job.kind == "translator" else set()  # what a discriminator sees keeps its scale
    streams: dict[str, Stream] = {}
    for number, (name, images) in enumerate(sets.items()):
        if isinstance(images, Images):
            streams[name] = MemoryStream(images, job.batches[name], (config.seed, number), place)
        else:
            streams[name] = RayStream(images, job.batches[name], config.seed, place)

    def augment_stream(name: str, images: Tensor, labels: Tensor | None) -> Batch:
        change = cropped if name in whole else zoomed if name in plain else coloured
        return change(images, None if name in unused else labels)

    calibration = _load_calibration(job) if isinstance(training, SegmenterTraining) else None

    def validate() -> dict[str, float]:
        if isinstance(training, SegmenterTraining) and calibration is not None:
            training.calibrate(calibration)
        if validation is None or len(validation) == 0:
            return {}
        return {"miou": mean_iou(class_ious(confusion_matrix(training.predictor(), validation, classes, place)))}

    return Parts(training, streams, augment_stream, validate)


def _load_calibration(job: Job) -> Images:
    """Some training images of the domain that a segmenter is for: it is used with their batch-norm statistics."""
    data = job.config.data
    uri = data.synthetic if job.kind == "expert" else data.real
    ids = [sample.id for sample in list_ids(uri, "train")]
    chosen = ids[:: max(1, len(ids) // CALIBRATED)][:CALIBRATED]
    return load_images(uri, "train", data.size, labels=False, ids=chosen)


def _build_student(job: Job, classes: int, labelled: Images | None, place: Place) -> StudentTraining:
    config, recipe = job.config, job.recipe
    assert job.expert is not None
    start = job.student.directory if recipe.start == "student" and job.student else job.expert
    own = config.expert.model is not None  # and never trained on
    scratch = recipe.start == "scratch" or (own and recipe.start == "expert")
    network = build_segmenter(config.segmenter, classes) if scratch else load_segmenter(start, classes)
    teacher: Predict | Literal["average"] | None = "average" if recipe.teacher == "average" else None
    if recipe.teacher in ("ensemble", "agreement"):
        together = ensemble if recipe.teacher == "ensemble" else agreement
        teacher = together([load_model(member, place).predict for member in job.members])
    weights = {"synthetic": class_weights(read_manifest(config.data.synthetic).splits["train"].pixels)}
    if labelled is not None and labelled.labels is not None:
        weights["labelled"] = class_weights(np.bincount(labelled.labels.ravel(), minlength=classes)[:classes].tolist())
    settings = config.student
    rate = settings.learning_rate_scratch if scratch else settings.learning_rate
    return StudentTraining(network, rate, config, place, _build_appearance(job, place), teacher, weights)


def _build_appearance(job: Job, place: Place) -> Appearance:
    """How the job's synthetic images look to the student."""
    config, recipe = job.config, job.recipe
    if recipe.synthetic == "FDA":
        return lambda synthetic, real: swap_amplitude(
            synthetic, _as_many(real, len(synthetic)), config.appearance.bandwidth
        )
    if recipe.synthetic == "randomised":
        randomise = build_randomise(config.appearance.strength)
        return lambda synthetic, real: randomise(synthetic)
    if recipe.synthetic == "translated":
        assert job.translator is not None
        s2r, jitter = load_generator(job.translator.directory, "s2r_ema", place), build_colour(config.augment.colour)

        def translate(synthetic: Tensor, real: Tensor | None) -> Tensor:
            count = round(config.appearance.translated * len(synthetic))
            return jitter(torch.cat([s2r(synthetic[:count]), synthetic[count:]]))

        return translate
    return lambda synthetic, real: synthetic


def _as_many(images: Tensor | None, count: int) -> Tensor:
    assert images is not None
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


def load_labelled(job: Job) -> tuple[Images | None, Images | None]:
    """The labelled real images that the job may see: for training and for validation. No other label is read."""
    train, validation = label_ids(job)
    data = job.config.data
    bought, held_out = (
        load_images(data.real, "train", data.size, ids=ids) if ids else None for ids in (train, validation)
    )
    named = job.config.labels.ids
    if bought is not None and named is not None and job.budget >= 0:
        assert bought.labels is not None
        bought = replace(bought, labels=keep_bought(train, bought.labels, named.cells))
    if bought is not None and job.config.labels.shuffle:
        assert bought.labels is not None
        if len(bought) < 2:
            raise UserError("labels.shuffle = True: one labelled image has no other to take a label from; buy two")
        # Their order is random, and none keeps its own.
        bought = replace(bought, labels=np.roll(bought.labels, 1, axis=0))
    return bought, held_out


def _no_labels(job: Job) -> str:
    config = job.config
    budget = f"{config.data.real} has none to train on (labels.budget = {config.labels.budget})"
    if job.kind != "translator":
        return f"method {job.kind!r} needs labelled photographs, but {budget}"
    return (
        f"guidance.weight = {config.guidance.weight} needs labelled photographs, but {budget}; label some, or set "
        "guidance.weight=0 for plain CycleGAN"
    )
