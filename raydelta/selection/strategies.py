"""Strategies: what a label of each pixel would teach. The place to add one.

A strategy turns a batch of photographs into heat maps. The mean heat of an image, or of a cell of it, is its score;
rare classes may count more. How a batch is chosen from the scores: ``batch``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raydelta.errors import UserError

RAREST = 1e-3
"""Rare classes weigh more, but one that covers a smaller share of the pool than this weighs as if it covered this."""

NEIGHBOURHOOD = 20
"""RIPU looks at a square around each pixel, whose side is the image's height divided by this, at least 3 pixels."""


@dataclass(frozen=True)
class Networks:
    """A trained translator with its expert, or a segmenter for photographs: functions of images (N, 3, H, W) in
    [-1, 1]."""

    see: Callable[[Tensor], tuple[Tensor, list[Tensor]]]  # fp32 logits (N, C, H, W), features (N, F, h, w) by layer
    r2s: Callable[[Tensor], Tensor] | None = None  # None: photographs are seen as they are
    s2r: Callable[[Tensor], Tensor] | None = None
    student: Callable[[Tensor], Tensor] | None = None  # fp32 logits; for ``committee`` alone


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
        """R2S(x), (N, 3, H, W); x where nothing translates."""
        return self._networks.r2s(self.images) if self._networks.r2s is not None else self.images

    @cached_property
    def _seen(self) -> tuple[Tensor, list[Tensor]]:
        return self._networks.see(self.translated)

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
        return self._seen[1][-1].mean((2, 3))

    @property
    def layout(self) -> Tensor:
        """What is where in the image, (N, F): the last three layers of the expert's encoder, averaged over 4 x 2 parts
        of the image, and the share of each predicted class."""
        layers = [F.adaptive_avg_pool2d(layer, (2, 4)).flatten(1) for layer in self._seen[1][-3:]]
        shares = count_classes(self.classes, self.logits.shape[1]) / self.classes[0].numel()
        return torch.cat([*layers, shares], 1)

    @property
    def student(self) -> Tensor:
        """The student's view of x, (N, C, H, W)."""
        assert self._networks.student is not None
        return self._networks.student(self.images)

    @property
    def untranslated(self) -> Tensor:
        """E(x), (N, C, H, W)."""
        return self._networks.see(self.images)[0]

    @property
    def cycled(self) -> Tensor:
        """S2R(R2S(x)), (N, 3, H, W)."""
        assert self._networks.s2r is not None
        return self._networks.s2r(self.translated)


def alike(view: View) -> Tensor:
    """Every pixel has the same heat: the choice depends on the order or the features alone."""
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

    Xie et al. 2022. The size of the neighbourhood is ours. Only pixels half a neighbourhood apart are looked at (ours
    too): scoring then costs a tenth of the prediction, not a third.
    """
    return _impure_and_uncertain(view, 2 * max(1, view.logits.shape[2] // (2 * NEIGHBOURHOOD)) + 1)


def ripu_small(view: View) -> Tensor:
    """``ripu`` with regions of radius 1, 3 x 3 pixels, as published: it finds thin things and borders."""
    return _impure_and_uncertain(view, 3)


def _impure_and_uncertain(view: View, side: int) -> Tensor:
    logits = view.logits
    predicted = torch.zeros_like(logits).scatter_(1, view.classes[:, None], 1.0)
    heat = _entropy(_smooth(predicted, side)) * _smooth(entropy(view)[:, None], side)[:, 0]
    return F.interpolate(heat[:, None], logits.shape[2:], mode="bilinear")[:, 0]


def disagreement(view: View) -> Tensor:
    """Jensen-Shannon divergence of E(x) and E(R2S(x)), as a share of the largest there is."""
    return _divergence(view.logits, view.untranslated)


def committee(view: View) -> Tensor:
    """Jensen-Shannon divergence of the student and of E(R2S(x)), as a share of the largest there is."""
    return _divergence(view.logits, view.student)


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    first, second = logits.softmax(1), others.softmax(1)
    mixed = (first + second) / 2
    classes = mixed.shape[1]
    return (_entropy(mixed) - (_entropy(first) + _entropy(second)) / 2).clamp(min=0) * log(classes) / log(2)


def reconstruction(view: View) -> Tensor:
    """|S2R(R2S(x)) - x|, mean over the channels, as a share of the largest there is."""
    return (view.cycled - view.images).abs().mean(1) / 2


@dataclass(frozen=True)
class Strategy:
    """A heat map, and how a batch is chosen with it."""

    heat: Callable[[View], Tensor]  # (N, H, W), at least 0
    diverse: bool = False  # each choice is also far from the labelled and the chosen images in the expert's features
    rare: bool = False  # a pixel's heat counts × the weight of its predicted class, see ``rarity_weights``
    way: Literal["hottest", "stride", "typical"] = "hottest"  # how a batch is chosen, see ``batch``
    cells: bool = False  # cells of 16 x 16 pixels are chosen unless a grid is given

    @property
    def looks(self) -> bool:
        """Whether pixels differ in heat, so that there is a heat map to show and a score to write."""
        return self.heat is not alike

    @property
    def whole(self) -> bool:
        """Whether it can only tell whole images apart."""
        return not self.looks and (self.diverse or self.way != "hottest")


STRATEGIES: dict[str, Strategy] = {
    "combined": Strategy(ripu, diverse=True, rare=True),
    "random": Strategy(alike),
    "stride": Strategy(alike, way="stride"),
    "typical": Strategy(alike, way="typical"),
    "entropy": Strategy(entropy),
    "margin": Strategy(margin),
    "ripu": Strategy(ripu),
    "disagreement": Strategy(disagreement),
    "committee": Strategy(committee),
    "reconstruction": Strategy(reconstruction),
    "coverage": Strategy(alike, diverse=True),
    "rarity": Strategy(entropy, rare=True),
    "ripu-cells": Strategy(ripu_small, cells=True),
    "random-cells": Strategy(alike, cells=True),
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


def count_classes(classes: Tensor, count: int) -> Tensor:
    """Pixels of each class: long (N, H, W) → (N, count)."""
    return torch.stack([image.flatten().bincount(minlength=count) for image in classes])


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
    """``scores`` (N, cells), and ``features`` (N, F) if the choice needs them.

    Where rare classes weigh more, the scores are by predicted class (N, cells, C), and ``predicted`` (N, C) counts its
    pixels.
    """
    heat = strategy.heat(view)
    found = {"scores": cell_means(heat, grid)}
    if strategy.rare:
        found["scores"] = class_means(heat, view.classes, classes, grid)
        found["predicted"] = count_classes(view.classes, classes)
    if strategy.diverse:
        found["features"] = view.features
    if strategy.way == "typical":
        found["features"] = view.layout
    return found


def _entropy(shares: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W), as a share of log C."""
    return torch.special.entr(shares).sum(1) / log(shares.shape[1])


def _smooth(maps: Tensor, side: int) -> Tensor:
    """Mean over the square around a pixel, as far as it lies in the image; of pixels half a side, at least 2, apart."""
    return F.avg_pool2d(maps, side, stride=max(2, side // 2), padding=side // 2, count_include_pad=False)
