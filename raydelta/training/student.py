"""The student's step: one segmenter for photographs, and every segmenter on the same labels that it is compared with.

    L = ½ [ CE_w(f(a(s)), y) + CE_w(f(x), y) ] + w · q · CE_w(f(m), ŷ)

over synthetic images s in some appearance a (as they are, translated by S2R, FDA, randomised), labelled photographs x
and, where there is a teacher, unlabelled photographs r: ŷ is what the teacher sees in them, void where it is not
confident, and q the share of the pixels where it is. A mean teacher (Tarvainen & Valpola 2017) is the student's own
moving average, and m are photographs into which half of the classes of another image are pasted, a synthetic or a
labelled one in turn (DACS, Tranheden et al. 2021); a fixed teacher labels the photographs as they are (pseudo-labels,
Lee 2013). Photographs have a forward of their own, labelled and mixed ones together.
"""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Literal

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

        mixed, pseudo = self._pseudo(real, supervised)
        self.network.train()
        losses = []
        if "synthetic" in supervised:
            images, labels = supervised["synthetic"]
            losses.append(self.cross_entropy(self.logits(images), _given(labels), "synthetic"))
        images, labels = supervised.get("labelled", (mixed[:0], pseudo[:0]))
        seen, mixed_seen = self.logits(torch.cat([images, self._jitter(mixed)])).split([len(images), len(mixed)])
        if len(images):
            losses.append(self.cross_entropy(seen, _given(labels), "labelled"))
        taught = self.cross_entropy(mixed_seen, pseudo, "labelled" if len(images) else "synthetic")
        confident = self.place.total((pseudo != IGNORE).sum()) / (pseudo.numel() * self.place.world)
        loss = torch.stack(losses).mean()
        self.update(loss + self.settings.weight * confident * taught, done)
        terms = {"cross_entropy": loss, "pseudo_labels": taught, "confident": confident}
        return {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def _pseudo(self, real: Tensor, supervised: Mapping[str, Batch]) -> tuple[Tensor, Tensor]:
        """Photographs with the teacher's labels; a mean teacher's are mixed with images whose labels are known."""
        if callable(self.teacher):
            return real, confident_labels(self.teacher(real), self.settings.confidence)
        self.uncalibrate()
        labels = confident_labels(self.predictor()(real), self.settings.confidence)
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


def _given(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels
