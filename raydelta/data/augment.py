"""Random augmentation with kornia, on the training device, for whole batches; image and label under one geometry."""

from collections.abc import Callable

import torch
from kornia.augmentation import AugmentationSequential, RandomBrightness, RandomContrast, RandomHorizontalFlip
from kornia.augmentation import RandomResizedCrop as Crop
from kornia.constants import DataKey, Resample
from torch import Tensor

from raydelta.config import AugmentConfig

Batch = tuple[Tensor, Tensor | None]
"""Images float (N, 3, H, W) in [-1, 1]; labels long (N, H, W) with IGNORE, or None."""


NORMALISATION = (-1.0, 1.0)
"""What 0 and 255 become before a network sees them."""


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 → float in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1], clipped → uint8 in 0..255."""
    return ((images.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)


def build_augment(
    config: AugmentConfig, height: int, width: int, colour: bool
) -> Callable[[Tensor, Tensor | None], Batch]:
    """A function from uint8 images (N, 3, H, W) and labels (N, H, W) to an augmented float batch.

    Randomness comes from torch's global generator. Labels are resampled nearest, so no new ids appear; a crop never
    leaves the image, so no IGNORE appears either.
    """
    stages = [
        RandomHorizontalFlip(p=config.flip),
        Crop(
            (height, width), scale=(config.crop, 1.0), ratio=(width / height, width / height), p=float(config.crop < 1)
        ),
    ]
    if colour:
        stages += _colour_stages(config)
    nearest = {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None}}
    both = AugmentationSequential(*stages, data_keys=["input", "mask"], extra_args=nearest)
    image_only = AugmentationSequential(*stages, data_keys=["input"])

    def augment(images: Tensor, labels: Tensor | None) -> Batch:
        pixels = images.float() / 255.0
        if labels is None:
            return image_only(pixels) * 2.0 - 1.0, None
        pixels, mask = both(pixels, labels[:, None].float())
        return pixels * 2.0 - 1.0, mask[:, 0].long()

    return augment


def build_colour(config: AugmentConfig) -> Callable[[Tensor], Tensor]:
    """The colour part of ``build_augment`` alone: float images (N, 3, H, W) in [-1, 1] → the same."""
    stages = _colour_stages(config)
    if not stages:
        return lambda images: images
    jitter = AugmentationSequential(*stages, data_keys=["input"])
    return lambda images: jitter((images + 1.0) / 2.0) * 2.0 - 1.0


def _colour_stages(config: AugmentConfig) -> list:
    if config.colour == 0:
        return []
    around_one = (1 - config.colour, 1 + config.colour)
    return [RandomBrightness(brightness=around_one, p=0.8), RandomContrast(contrast=around_one, p=0.8)]
