"""Losses as pure functions, computed in fp32 whatever the networks computed in."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydelta.data.taxonomy import IGNORE


def lsgan(scores: Tensor, real: bool) -> Tensor:
    """Mean squared distance of the patch scores to 1 (real) or 0 (fake). LSGAN, Mao et al. 2017.

    Args:
        scores: (N, 1, h, w) from a discriminator.
    """
    return (scores.float() - float(real)).square().mean()


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two image batches of one shape."""
    return (image.float() - target.float()).abs().mean()


def cross_entropy_sum(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy summed over the valid pixels, and the sum of their weights, both fp32 scalars.

    Two sums, not a mean: ranks hold different numbers of valid pixels, so the mean is taken after both were added up
    over the ranks.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), long; ``IGNORE`` where no class applies.
        weights: (C,), of the classes; 1 each if None.
    """
    total = F.cross_entropy(logits.float(), labels, weights, ignore_index=IGNORE, reduction="sum")
    valid = labels != IGNORE
    if weights is None:
        return total, valid.sum(dtype=torch.float32)
    return total, (weights[labels.where(valid, 0)] * valid).sum()


def class_weights(pixels: Sequence[int]) -> Tensor:
    """1 ÷ √frequency of each class, (C,), scaled to a mean of 1 over the pixels; all 1 where nothing was counted.

    Args:
        pixels: of each class, in the images that are trained on.
    """
    counts = torch.tensor(pixels, dtype=torch.float64)
    if not counts.any():
        return torch.ones(len(counts))
    shares = counts / counts.sum()
    weights = (shares + 1e-3).rsqrt()  # no class counts more than 32 times as much as one that fills the images
    return (weights / (weights * shares).sum()).float()


def dice_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """What the Dice loss is made of, to be added up over the ranks: (3, C), overlap, size of both, size of the labels.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), long; ``IGNORE`` where no class applies.
    """
    valid = (labels != IGNORE)[:, None]
    truth = F.one_hot(labels.where(labels != IGNORE, 0), logits.shape[1]).movedim(-1, 1) * valid
    shares = logits.float().softmax(1) * valid
    return torch.stack([part.sum((0, 2, 3)) for part in (shares * truth, shares + truth, truth.float())])


def dice_loss(sums: Tensor) -> Tensor:
    """1 - mean Dice overlap of the softmax with the labels, over the classes in the labels. Milletari et al. 2016.

    Args:
        sums: of ``dice_sums``, over all ranks.
    """
    overlap, size, labelled = sums
    present = labelled > 0
    return ((1 - 2 * overlap / size.clamp(min=1)) * present).sum() / present.sum().clamp(min=1)
