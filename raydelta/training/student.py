"""The student's step: one segmenter for photographs, and every segmenter on the same labels that it is compared with.

    L = ½ [ CE_w(f(a(s)), y) + CE_w(f(x), y) ] + w · mean over the views v of  q_v · CE_w(f(m_v), ŷ_v)

over synthetic images s in some appearance a (as they are, translated by S2R, FDA, randomised), labelled photographs x
and, where there is a teacher, unlabelled photographs r in one strong view m or in two (UniMatch, Yang et al. 2023): ŷ
is what the teacher sees in r as it is. A mean teacher (Tarvainen & Valpola 2017) is the student's own moving average,
and the strong views have half of the classes of another image pasted, a synthetic or a labelled one in turn (DACS,
Tranheden et al. 2021), or a box of another photograph (CutMix, Yun et al. 2019); a fixed teacher labels the photographs
as they are (pseudo-labels, Lee 2013). What the teacher is not sure of is void, and q the share of the other pixels; or
all of its labels count, and q is the share of which it is sure (DACS, DAFormer: Hoyer et al. 2022). Photographs have a
forward of their own, labelled and mixed ones together.
"""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.config import Config
from raydelta.data.augment import build_colour
from raydelta.data.pixels import Batch
from raydelta.data.taxonomy import IGNORE
from raydelta.training.supervised import Predict, SegmenterTraining

Appearance = Callable[[Tensor, Tensor | None], Tensor]
"""Synthetic images and photographs (or None), float (N, 3, H, W) in [-1, 1] → the synthetic images in another look."""


class View(NamedTuple):
    """A strong view of some photographs."""

    images: Tensor  # (N, 3, H, W) in [-1, 1]
    labels: Tensor  # long (N, H, W)
    share: Tensor  # its weight: the share of pixels that the teacher is sure of, over all ranks


class StudentTraining(SegmenterTraining):
    """Trains a segmenter on synthetic images in some appearance, on labels and on pseudo-labels."""

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        config: Config,
        place: Place,
        appearance: Appearance,
        teacher: Predict | Literal["average"] | None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            teacher: a fixed predictor, ``"average"`` for a mean teacher, or None for no self-training.
            weights: (C,), of the classes, of ``synthetic`` and ``labelled`` images.
        """
        rate = config.segmenter.encoder_rate
        super().__init__(network, learning_rate, place, ema=config.student.ema, encoder_rate=rate, weights=weights)
        self.settings, self.appearance, self.teacher = config.self_training, appearance, teacher
        self._jitter = build_colour(config.augment.colour)

    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One optimiser step. Collective.

        Args:
            batch: ``synthetic`` and ``labelled`` images with labels, one of the two at least; ``real``
                photographs where the appearance or the teacher needs them.
            done: share of the training that is behind, in [0, 1).
        """
        real = batch["real"][0] if "real" in batch else None
        supervised = {name: batch[name] for name in ("synthetic", "labelled") if name in batch}
        if "synthetic" in batch:
            images, labels = batch["synthetic"]
            supervised["synthetic"] = self.appearance(images, real), labels
        listens = self.teacher is not None and (self.teacher != "average" or done >= self.settings.start)
        if real is None or not listens:
            return super().step(supervised, done)

        views = self._views(real, supervised)
        self.network.train()
        losses = []
        if "synthetic" in supervised:
            images, labels = supervised["synthetic"]
            losses.append(self.cross_entropy(self.logits(images), _given(labels), "synthetic"))
        images, labels = supervised.get("labelled", (real[:0], None))
        together = torch.cat([images, *(self._jitter(view.images) for view in views)])
        seen, *views_seen = self.logits(together).split([len(images), *[len(real)] * len(views)])
        if len(images):
            losses.append(self.cross_entropy(seen, _given(labels), "labelled"))
        domain = "labelled" if len(images) else "synthetic"
        taught = [self.cross_entropy(seen, view.labels, domain) for seen, view in zip(views_seen, views, strict=True)]
        weighted = [self.settings.weight * view.share * term for view, term in zip(views, taught, strict=True)]
        loss = torch.stack(losses).mean()
        self.update(loss + torch.stack(weighted).mean(), done)
        shares = torch.stack([view.share for view in views])
        terms = {"cross_entropy": loss, "pseudo_labels": torch.stack(taught).mean(), "confident": shares.mean()}
        return {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def _views(self, real: Tensor, supervised: Mapping[str, Batch]) -> list[View]:
        """The strong views of the photographs, with what the teacher sees in them as they are. Collective."""
        average = not callable(self.teacher)
        if average:
            self.uncalibrate()
        logits = self.teacher(real) if callable(self.teacher) else self.predictor()(real)
        labels = confident_labels(logits, self.settings.confidence)
        share = None
        if average and self.settings.weighting == "share":
            share, labels = self._share(labels), confident_labels(logits, 0.0)
        views = []
        for _ in range(self.settings.views):
            mixed, pseudo = self._mix(real, labels, supervised) if average else (real, labels)
            views.append(View(mixed, pseudo, self._share(pseudo) if share is None else share))
        return views

    def _share(self, labels: Tensor) -> Tensor:
        """The share of pixels with a label. Collective."""
        return self.place.total((labels != IGNORE).sum()) / (labels.numel() * self.place.world)

    def _mix(self, real: Tensor, labels: Tensor, supervised: Mapping[str, Batch]) -> tuple[Tensor, Tensor]:
        """Photographs mixed with each other, or with images whose labels are known."""
        if self.settings.mixing == "boxes":
            return mix_boxes(real, labels)
        known = [list(zip(images, _given(labels), strict=True)) for images, labels in supervised.values()]
        in_turn = [pair for pairs in zip_longest(*known) for pair in pairs if pair is not None]
        images, truth = (torch.stack(parts) for parts in zip(*in_turn, strict=True))
        return mix_classes(images, truth, real, labels)


def confident_labels(logits: Tensor, confidence: float) -> Tensor:
    """The likeliest class of every pixel, ``IGNORE`` below the confidence: (N, C, H, W) → long (N, H, W)."""
    likelihood, labels = logits.softmax(1).max(1)
    return labels.where(likelihood >= confidence, IGNORE)


def mix_classes(images: Tensor, labels: Tensor, real: Tensor, pseudo: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the classes of each image, rounded up, pasted into a photograph. ClassMix, Olsson et al. 2021.

    The host never waits for the device.

    Args:
        images: with labels, at least one; taken in turn where there are fewer than photographs.
    """
    turns = -(-len(real) // len(images))
    images, labels = images.repeat(turns, 1, 1, 1)[: len(real)], labels.repeat(turns, 1, 1)[: len(real)]
    ids = labels.flatten(1)
    present = torch.zeros(len(real), IGNORE + 1, dtype=torch.bool, device=ids.device).scatter_(1, ids, True)
    present[:, IGNORE] = False
    # Drawn on the CPU, where a resumed run restores the generator; the smallest keys among the present classes win.
    keys = torch.rand(present.shape).to(ids.device, non_blocking=True).masked_fill(~present, 2)
    chosen = present & (keys.argsort(1).argsort(1) < (present.sum(1, keepdim=True) + 1) // 2)
    pasted = chosen.gather(1, ids).view_as(labels)
    return torch.where(pasted[:, None], images, real), torch.where(pasted, labels, pseudo)


def mix_boxes(real: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A box of the one before pasted into each photograph, at even odds. CutMix, Yun et al. 2019.

    As in UniMatch the box takes 2 to 40 % of the area, and is 0.3 to 3.3 times as high as wide in shares of the image.
    """
    count, height, width = labels.shape
    area, ratio, top, left, chance = torch.rand(5, count)  # on the CPU, where a resumed run restores the generator
    area, ratio = 0.02 + 0.38 * area, 0.3 + (1 / 0.3 - 0.3) * ratio
    high, wide = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    rows = _within(top * (1 - high), high * (chance < 0.5), height)
    columns = _within(left * (1 - wide), wide, width)
    box = (rows[:, :, None] & columns[:, None, :]).to(real.device, non_blocking=True)
    return torch.where(box[:, None], real.roll(1, 0), real), torch.where(box, labels.roll(1, 0), labels)


def _within(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Which of ``size`` pixels lie in a stretch, in shares of the whole: (N,), (N,) → bool (N, size)."""
    middle = (torch.arange(size) + 0.5) / size
    return (middle >= start[:, None]) & (middle < (start + length)[:, None])


def _given(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels
