"""The expert with batch-norm statistics that are partly those of photographs (Schneider et al. 2020).

    mean = (1 - share) · mean of the synthetic images + share · mean of the photographs,   the variance likewise

No weight changes, and no label is used.
"""

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.data.pixels import Batch
from raydelta.networks.layers import freeze
from raydelta.training.step import Training
from raydelta.training.supervised import build_predictor


class BlendTraining(Training):
    """Takes the statistics of photographs, a batch at a step."""

    def __init__(self, expert: nn.Module, share: float, place: Place) -> None:
        self.share, self.place = share, place
        self.expert = freeze(expert).to(place.device)
        self.adapted = copy.deepcopy(self.expert)
        if not _norms(self.adapted):
            warnings.warn(
                "the expert has no batch norm that can be changed: the row blended is the expert as it is", stacklevel=2
            )
        for norm in _norms(self.adapted):
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches

    @torch.no_grad()
    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One batch of ``real`` photographs more. Every rank sees its own; the first one's statistics are kept."""
        for norm in _norms(self.adapted):
            norm.train()
        self.adapted(batch["real"][0])
        return {}

    def blended(self) -> nn.Module:
        """The expert with the blended statistics, as they are now."""
        network = copy.deepcopy(self.expert)
        for norm, adapted in zip(_norms(network), _norms(self.adapted), strict=True):
            for mine, theirs in ((norm.running_mean, adapted.running_mean), (norm.running_var, adapted.running_var)):
                assert mine is not None and theirs is not None
                mine.lerp_(theirs, self.share)
        return network

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W), with the statistics as they are now."""
        return build_predictor(self.blended())

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights; ``segmenter`` is what is used."""
        return {"segmenter": self.blended(), "adapted": self.adapted}


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
