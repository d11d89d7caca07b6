"""The student's step: one segmenter for photographs, and every segmenter on the same labels that it is compared with.

    L = CE(f(a(s) ∪ x), y) + w · q · CE(f(m), ŷ)

over synthetic images s in some appearance a (as they are, translated by S2R, FDA, randomised), labelled photographs x
and, where there is a teacher, unlabelled photographs r: ŷ is what the teacher sees in them, void where it is not
confident, and q the share of the pixels where it is. A mean teacher (Tarvainen & Valpola 2017) is the student's own
moving average, and m are photographs into which half of the classes of a synthetic image are pasted (DACS, Tranheden et
al. 2021); a fixed teacher labels the photographs as they are (pseudo-labels, Lee 2013).
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.config import Config
from raydelta.data.augment import Batch, build_colour
from raydelta.data.taxonomy import IGNORE
from raydelta.networks.layers import freeze
from raydelta.training.supervised import Predict, SegmenterTraining

Appearance = Callable[[Tensor, Tensor | None], Tensor]
"""Synthetic images and photographs (or None), float (N, 3, H, W) in [-1, 1] → the synthetic images in another look."""


class StudentTraining(SegmenterTraining):
    """Trains a segmenter on synthetic images in some appearance, on labels and on pseudo-labels."""

    def __init__(
        self, network: nn.Module, config: Config, place: Place, appearance: Appearance, teacher: Predict | str | None
    ) -> None:
        """
        Args:
            teacher: a fixed predictor, ``"average"`` for a mean teacher, or None for no self-training.
        """
        super().__init__(network, config.student.learning_rate, place)
        self.settings, self.appearance = config.self_training, appearance
        self._jitter = build_colour(config.augment)
        self.average = freeze(copy.deepcopy(self.network)) if teacher == "average" else None
        self.teacher = None if isinstance(teacher, str) else teacher

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
        images, labels = _join(supervised)
        counts = [len(images)]
        if real is not None and self._listens(done):
            mixed, pseudo = self._pseudo(real, supervised)
            images, labels = _join({"supervised": (images, labels), "pseudo": (self._jitter(mixed), pseudo)})
            counts.append(len(real))

        self.network.train()
        losses = [
            self._cross_entropy(*part)
            for part in zip(self._logits(images).split(counts), labels.split(counts), strict=True)
        ]
        terms = {"cross_entropy": losses[0]}
        loss = losses[0]
        if len(losses) > 1:
            terms["pseudo_labels"] = losses[1]
            confident = labels[counts[0] :] != IGNORE
            terms["confident"] = self.place.total(confident.sum()) / (confident.numel() * self.place.world)
            loss = loss + self.settings.weight * terms["confident"] * losses[1]
        self._update(loss, done)
        if self.average is not None:
            self._follow(done)
        return {name: term.detach() for name, term in terms.items()}

    def _listens(self, done: float) -> bool:
        return self.teacher is not None or (self.average is not None and done >= self.settings.start)

    @torch.no_grad()
    def _pseudo(self, real: Tensor, supervised: Mapping[str, Batch]) -> Batch:
        """Photographs with the teacher's labels; a mean teacher's are mixed with synthetic images."""
        if self.teacher is not None:
            return real, confident_labels(self.teacher(real), self.settings.confidence)
        assert self.average is not None
        labels = confident_labels(self.average(real).float(), self.settings.confidence)
        images, truth = supervised["synthetic"]
        assert truth is not None
        return mix_classes(images, truth, real, labels)

    def _follow(self, done: float) -> None:
        """The mean teacher follows the student, fast at first."""
        assert self.average is not None
        rate = 1 - self.settings.ema if done >= self.settings.start else max(0.1, 1 - self.settings.ema)
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, rate)
                else:
                    mean.copy_(value)

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights."""
        return super().networks() | ({"average": self.average} if self.average is not None else {})


def confident_labels(logits: Tensor, confidence: float) -> Tensor:
    """The likeliest class of every pixel, ``IGNORE`` below the confidence: (N, C, H, W) → long (N, H, W)."""
    likelihood, labels = logits.softmax(1).max(1)
    return labels.where(likelihood >= confidence, IGNORE)


def mix_classes(images: Tensor, labels: Tensor, real: Tensor, pseudo: Tensor) -> Batch:
    """Half of the classes of each synthetic image pasted into a photograph. ClassMix, Olsson et al. 2021.

    Args:
        images: synthetic, at least one; taken in turn where there are fewer than photographs.
    """
    mixed, mixed_labels = real.clone(), pseudo.clone()
    for index in range(len(real)):
        image, label = images[index % len(images)], labels[index % len(labels)]
        present = label.unique()
        present = present[present != IGNORE]
        # drawn on the CPU, where a resumed run restores the generator
        chosen = present[torch.randperm(len(present))[: (len(present) + 1) // 2].to(present.device)]
        pasted = torch.isin(label, chosen)
        mixed[index] = torch.where(pasted, image, mixed[index])
        mixed_labels[index] = torch.where(pasted, label, mixed_labels[index])
    return mixed, mixed_labels


def _join(batches: Mapping[str, Batch]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.values(), strict=True)
    return torch.cat(images), torch.cat(labels)
