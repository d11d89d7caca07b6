"""Networks of finished trainings, loaded for inference or as parts of other trainings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.networks import Generator, build_segmenter
from raydelta.networks.colours import Colours
from raydelta.networks.layers import freeze
from raydelta.networks.own_expert import load_own_expert
from raydelta.storage.bucket import fetch
from raydelta.training import checkpoint
from raydelta.training.job import OWN, Job, read_job
from raydelta.training.supervised import Predict, build_predictor


def load_segmenter(directory: Path, classes: int) -> nn.Module:
    """The segmenter of a complete expert or baseline stage, on the CPU."""
    fetch(directory, age=60)
    path = directory / "checkpoint"
    config, own = checkpoint.read_config(path), next(directory.glob(f"{OWN}*"), None)
    if own is not None:
        return load_own_expert(own, config.expert, config.segmenter, read_job(directory).taxonomy.classes)
    job = read_job(directory) if config.expert.model is not None else None

    def build() -> nn.Module:
        if job is not None and job.kind == "blended" and job.expert is not None:  # the user's network, other statistics
            return load_segmenter(job.expert, classes)
        return build_segmenter(config.segmenter, classes, pretrained=False)

    return checkpoint.load_network(build, path, "segmenter")


@dataclass(frozen=True)
class Model:
    """A trained job for inference; ``translate`` is None where photographs go into the segmenter as they are."""

    predict: Callable[[Tensor], Tensor]
    translate: Callable[[Tensor], Tensor] | None


def load_model(job: Job, place: Place) -> Model:
    """The model of a complete stage (an ensemble: of its parts) on the place's device: images in [-1, 1] → logits."""
    if job.recipe.members:
        return Model(ensemble([load_model(member, place).predict for member in job.members]), None)
    if job.kind == "colours matched":
        assert job.expert is not None
        colours = read_colours(job.directory).to(place.device)
        expert = freeze(load_segmenter(job.expert, job.classes)).to(place.device)
        return Model(build_predictor(nn.Sequential(colours, expert)), colours)
    if job.kind != "translator":
        return Model(build_predictor(load_segmenter(job.directory, job.classes).to(place.device)), None)
    assert job.expert is not None
    expert = freeze(load_segmenter(job.expert, job.classes)).to(place.device, place.dtype)
    translate = load_generator(job.directory, "r2s_ema", place)
    return Model(lambda images: expert(translate(images).to(place.dtype)).float(), translate)


def read_colours(directory: Path) -> Colours:
    """The colours of a complete stage *colours matched*, on the CPU."""
    colours = Colours()
    colours.load_state_dict(checkpoint.read_weights(directory / "checkpoint", "colours"))
    return colours


def read_generator(directory: Path, name: str) -> nn.Module:
    """A generator of a complete translator stage, frozen, on the CPU."""
    path = directory / "checkpoint"
    settings = checkpoint.read_config(path).generator
    return freeze(checkpoint.load_network(partial(Generator, settings), path, name))


def load_generator(directory: Path, name: str, place: Place) -> Callable[[Tensor], Tensor]:
    """A generator of a complete translator stage: images in [-1, 1] → fp32 images, clipped to [-1, 1]."""
    generator = read_generator(directory, name).to(place.device)

    def translate(images: Tensor) -> Tensor:
        with torch.no_grad():
            return generator(images.to(place.dtype)).float().clamp(-1, 1)

    return translate


def ensemble(predictors: list[Predict]) -> Predict:
    """Several predictors as one: per pixel their class shares, weighted by their confidence, as log-shares.

    The weight is 1 - entropy ÷ log(classes), so a predictor that knows nothing of a pixel has no say there.
    """

    def predict(images: Tensor) -> Tensor:
        shares = torch.stack([predict_one(images).softmax(1) for predict_one in predictors])
        entropy = -(shares * shares.clamp(min=1e-8).log()).sum(2, keepdim=True)
        weights = (1 - entropy / math.log(shares.shape[2])).clamp(min=1e-4)
        return ((shares * weights).sum(0) / weights.sum(0)).clamp(min=1e-8).log()

    return predict


def agreement(predictors: list[Predict]) -> Predict:
    """Several predictors as one that knows nothing where they disagree: elsewhere their mean shares, as log-shares."""

    def predict(images: Tensor) -> Tensor:
        shares = torch.stack([predict_one(images).softmax(1) for predict_one in predictors])
        likeliest = shares.argmax(2, keepdim=True)
        agreed = (likeliest == likeliest[0]).all(0)
        return torch.where(agreed, shares.mean(0).clamp(min=1e-8).log(), 0.0)

    return predict
