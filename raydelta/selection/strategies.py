"""Which photographs to label next, the maths: what a label would teach, pixel by pixel, and the choice of a batch.

A strategy turns a batch of photographs into heat maps; the mean heat of an image, or of a cell of it, is its score,
where rare classes may count more. One place to add a strategy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydelta.errors import UserError

RAREST = 1e-3
"""A class that covers less of the pool than this weighs no more than one that covers as much."""

NEIGHBOURHOOD = 20
"""RIPU looks at a square around each pixel, whose side is the image's height divided by this, at least 3 pixels."""


@dataclass(frozen=True)
class Networks:
    """A trained translator: functions of images (N, 3, H, W) in [-1, 1]."""

    r2s: Callable[[Tensor], Tensor]
    s2r: Callable[[Tensor], Tensor]
    expert: Callable[[Tensor], tuple[Tensor, Tensor]]  # fp32 logits (N, C, H, W) and features (N, F)


class View:
    """A batch of photographs as the networks see it. Each part is computed once, when a strategy asks for it."""

    def __init__(self, networks: Networks, images: Tensor) -> None:
        """
        Args:
            images: float (N, 3, H, W) in [-1, 1].
        """
        self._networks, self.images = networks, images

    @cached_property
    def translated(self) -> Tensor:
        """R2S(x), (N, 3, H, W)."""
        return self._networks.r2s(self.images)

    @cached_property
    def _seen(self) -> tuple[Tensor, Tensor]:
        return self._networks.expert(self.translated)

    @property
    def logits(self) -> Tensor:
        """E(R2S(x)), (N, C, H, W)."""
        return self._seen[0]

    @cached_property
    def classes(self) -> Tensor:
        """The likeliest class of every pixel, long (N, H, W)."""
        return self.logits.max(1).indices  # on a CPU three times as fast as argmax

    @property
    def features(self) -> Tensor:
        """The expert's deepest features of R2S(x), averaged over the image, (N, F)."""
        return self._seen[1]

    @property
    def untranslated(self) -> Tensor:
        """E(x), (N, C, H, W)."""
        return self._networks.expert(self.images)[0]

    @property
    def cycled(self) -> Tensor:
        """S2R(R2S(x)), (N, 3, H, W)."""
        return self._networks.s2r(self.translated)


def alike(view: View) -> Tensor:
    """Every pixel counts the same: what is chosen depends on the order or the features alone."""
    return torch.ones_like(view.images[:, 0])


def entropy(view: View) -> Tensor:
    """Entropy of the class shares of E(R2S(x)), as a share of the largest there is."""
    logs = view.logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / log(logs.shape[1])


def margin(view: View) -> Tensor:
    """1 - the lead of the likeliest class over the next. Scheffer et al. 2001."""
    first, second = view.logits.softmax(1).topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


def ripu(view: View) -> Tensor:
    """Region impurity × uncertainty: entropy of the classes predicted around a pixel × mean entropy there.

    Xie et al. 2022. The size of the neighbourhood is ours, and so is that only pixels half a neighbourhood apart are
    looked at: scoring costs a tenth of the prediction then, not a third.
    """
    logits = view.logits
    side = 2 * max(1, logits.shape[2] // (2 * NEIGHBOURHOOD)) + 1
    predicted = torch.zeros_like(logits).scatter_(1, view.classes[:, None], 1.0)
    heat = _entropy(_smooth(predicted, side)) * _smooth(entropy(view)[:, None], side)[:, 0]
    return F.interpolate(heat[:, None], logits.shape[2:], mode="bilinear")[:, 0]


def disagreement(view: View) -> Tensor:
    """Jensen-Shannon divergence of E(x) and E(R2S(x)), as a share of the largest there is."""
    pair = view.logits.softmax(1), view.untranslated.softmax(1)
    mixed = sum(pair) / 2
    assert isinstance(mixed, Tensor)
    classes = mixed.shape[1]
    return (_entropy(mixed) - (_entropy(pair[0]) + _entropy(pair[1])) / 2).clamp(min=0) * log(classes) / log(2)


def reconstruction(view: View) -> Tensor:
    """|S2R(R2S(x)) - x|, mean over the channels, as a share of the largest there is."""
    return (view.cycled - view.images).abs().mean(1) / 2


@dataclass(frozen=True)
class Strategy:
    """A heat map, and what choosing by it takes."""

    heat: Callable[[View], Tensor]  # (N, H, W), at least 0
    diverse: bool = False  # each choice is also far from the labelled and the chosen images in the expert's features
    rare: bool = False  # a pixel's heat counts × the weight of its predicted class, see ``rarity_weights``


STRATEGIES: dict[str, Strategy] = {
    "combined": Strategy(ripu, diverse=True, rare=True),
    "random": Strategy(alike),
    "entropy": Strategy(entropy),
    "margin": Strategy(margin),
    "ripu": Strategy(ripu),
    "disagreement": Strategy(disagreement),
    "reconstruction": Strategy(reconstruction),
    "coverage": Strategy(alike, diverse=True),
    "rarity": Strategy(entropy, rare=True),
}


def find_strategy(name: str) -> Strategy:
    """A strategy by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy {name!r} does not exist; there are: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def rarity_weights(pixels: Tensor) -> Tensor:
    """Weight of each class, 1 ÷ its share of the pool; scaled so that the mean over the pool's pixels is 1.

    Args:
        pixels: (C,), how many pixels are predicted as each class.
    """
    shares = pixels / pixels.sum()
    weights = 1 / shares.clamp(min=RAREST)
    return weights / (weights * shares).sum()


def cell_means(heat: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean heat of every cell, row by row: (N, H, W) → (N, columns · rows).

    Args:
        grid: columns and rows, no more than there are pixels.
    """
    columns, rows = grid
    return F.adaptive_avg_pool2d(heat[:, None], (rows, columns)).flatten(1)


def class_means(heat: Tensor, classes: Tensor, count: int, grid: tuple[int, int]) -> Tensor:
    """``cell_means`` by predicted class: (N, H, W) twice → (N, cells, count), which add up to the mean."""
    images, height, width = heat.shape
    apart = heat.new_zeros(images, count, height, width).scatter_(1, classes[:, None], heat[:, None])
    return cell_means(apart.flatten(0, 1), grid).unflatten(0, (images, count)).transpose(1, 2)


def score(strategy: Strategy, view: View, classes: int, grid: tuple[int, int]) -> dict[str, Tensor]:
    """``scores`` (N, cells), and what choosing takes beside them: ``features`` (N, F) for a diverse strategy.

    Where rare classes weigh more, the scores are by predicted class (N, cells, C), and ``predicted`` (N, C) counts its
    pixels.
    """
    heat = strategy.heat(view)
    found = {"scores": cell_means(heat, grid)}
    if strategy.rare:
        found["scores"] = class_means(heat, view.classes, classes, grid)
        found["predicted"] = torch.stack([image.flatten().bincount(minlength=classes) for image in view.classes])
    if strategy.diverse:
        found["features"] = view.features
    return found


def choose_batch(
    scores: np.ndarray,
    sequences: np.ndarray,
    positions: np.ndarray,
    count: int,
    window: int,
    seed: int,
    features: np.ndarray | None = None,
    labelled: np.ndarray | None = None,
) -> list[tuple[int, int]]:
    """The images and cells to label next, best first. Equal ones are taken at random.

    One by one, the largest of score × distance to the nearest image that is labelled or chosen (k-center greedy, Sener
    & Savarese 2018; without features the score alone). Frames less than ``window`` apart in one sequence are
    near-duplicates: a batch holds the same cell of one of them only.

    Args:
        scores: (N, cells), at least 0; one cell is the whole image.
        sequences: (N,), the number of each image's sequence.
        positions: (N,), its place therein.
        window: at least 1, which allows every frame.
        features: (N, F).
        labelled: (L, F), features of the images that are labelled already.

    Raises:
        UserError: the windows leave fewer than ``count``.
    """
    order = np.lexsort((np.random.default_rng([seed, 0x5E1EC7]).random(scores.size), -scores.ravel()))
    free = np.ones(scores.shape, dtype=bool)
    nearest = np.ones(len(scores), dtype=np.float32)
    measured = features is not None and labelled is not None and len(labelled) > 0
    if measured:
        assert features is not None and labelled is not None
        nearest = np.min([_distances(features, one) for one in labelled], axis=0)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count:
        values = np.where(free, scores * nearest[:, None], -1.0).ravel()[order]
        best = int(np.argmax(values))
        if values[best] < 0:
            raise UserError(
                f"count = {count}, but with a window of {window} frames the pool has only {len(chosen)} that are no "
                "near-duplicates: ask for fewer, or lower the window"
            )
        image, cell = divmod(int(order[best]), scores.shape[1])
        chosen.append((image, cell))
        free[(sequences == sequences[image]) & (np.abs(positions - positions[image]) < window), cell] = False
        if features is not None:
            distances = _distances(features, features[image])
            nearest = np.minimum(nearest, distances) if measured else distances
            measured = True
    return chosen


def _distances(features: np.ndarray, one: np.ndarray) -> np.ndarray:
    return np.linalg.norm(features - one, axis=1)


def _entropy(shares: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W), as a share of log C."""
    return torch.special.entr(shares).sum(1) / log(shares.shape[1])


def _smooth(maps: Tensor, side: int) -> Tensor:
    """Mean over the square around a pixel, as far as it lies in the image; of pixels half a side, at least 2, apart."""
    return F.avg_pool2d(maps, side, stride=max(2, side // 2), padding=side // 2, count_include_pad=False)
