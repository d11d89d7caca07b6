"""Random augmentation with kornia, on the training device, for whole batches; image and label under one geometry."""

from collections.abc import Callable

from kornia.augmentation import (
    AugmentationSequential,
    ColorJitter,
    RandomAffine,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRGBShift,
)
from kornia.constants import DataKey, Resample
from torch import Tensor

from raydelta.config import AugmentConfig
from raydelta.data.pixels import Batch


def build_augment(
    config: AugmentConfig, height: int, width: int, *, zoom: bool, colour: bool
) -> Callable[[Tensor, Tensor | None], Batch]:
    """A function from uint8 images (N, 3, H, W) and labels (N, H, W) to an augmented float batch.

    Randomness comes from torch's global generator. Labels are resampled nearest, and mirrored beyond the border as the
    images are, so no new ids and no IGNORE appear.

    Args:
        zoom: zoom in or out, as for segmenters; else a part of the image is cut out, as for the translator.
        colour: another appearance too.
    """
    stages = [RandomHorizontalFlip(p=config.flip)]
    if zoom and config.zoom > 1:
        scale, shift = (1 / config.zoom, config.zoom), (1 - 1 / config.zoom) / 2
        stages.append(RandomAffine(0, translate=(shift, shift), scale=scale, padding_mode="reflection", p=1.0))
    if not zoom and config.crop < 1:
        ratio = (width / height, width / height)
        stages.append(RandomResizedCrop((height, width), scale=(config.crop, 1.0), ratio=ratio))
    change = build_colour(config.colour if colour else 0.0)
    nearest = {DataKey.MASK: {"resample": Resample.NEAREST, "align_corners": None}}
    both = AugmentationSequential(*stages, data_keys=["input", "mask"], extra_args=nearest)
    image_only = AugmentationSequential(*stages, data_keys=["input"])

    def augment(images: Tensor, labels: Tensor | None) -> Batch:
        pixels = images.float() / 255.0
        if labels is None:
            return change(image_only(pixels) * 2.0 - 1.0), None
        pixels, mask = both(pixels, labels[:, None].float())
        return change(pixels * 2.0 - 1.0), mask[:, 0].long()

    return augment


def build_colour(strength: float) -> Callable[[Tensor], Tensor]:
    """Random appearance of float images (N, 3, H, W) in [-1, 1], geometry untouched.

    Args:
        strength: in [0, 1]; 0.5 moves brightness, contrast and saturation by up to a half and the white balance by a
            twentieth of the range, and makes a fifth of the images grey and three tenths of them blurred.
    """
    if strength == 0:
        return lambda images: images
    change = AugmentationSequential(
        ColorJitter(strength, strength, strength, p=1.0),
        RandomRGBShift(0.1 * strength, 0.1 * strength, 0.1 * strength, p=1.0),
        RandomGrayscale(p=0.4 * strength),
        RandomGaussianBlur((3, 3), (0.1, 1.0), p=0.6 * strength),
        data_keys=["input"],
    )
    return lambda images: change((images + 1.0) / 2.0).clamp(0, 1) * 2.0 - 1.0
