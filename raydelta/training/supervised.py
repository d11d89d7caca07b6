"""Supervised training of a segmenter: the expert's step. The student's step builds on it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.data.augment import Batch
from raydelta.training.losses import cross_entropy_sum


class SegmenterTraining:
    """Trains a segmenter on the labelled images of one or several streams together."""

    def __init__(self, network: nn.Module, learning_rate: float, place: Place) -> None:
        self.network = network.to(place.device)
        self.learning_rate, self.place = learning_rate, place
        self._forward = place.parallel(self.network)
        self._optimiser = torch.optim.AdamW(self.network.parameters(), learning_rate, weight_decay=1e-4, fused=True)

    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One optimiser step. Collective.

        Args:
            batch: images and labels per stream, of this rank; every stream has labels.
            done: share of the training that is behind, in [0, 1).
        """
        images, labels = (torch.cat(parts) for parts in zip(*batch.values(), strict=True))
        self.network.train()
        loss = self._cross_entropy(self._logits(images), labels)
        self._update(loss, done)
        return {"cross_entropy": loss.detach()}

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.place.dtype, enabled=self.place.dtype != torch.float32):
            return self._forward(images)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        total, valid = cross_entropy_sum(logits, labels)
        # DDP averages gradients over the ranks: times the world, so that sum ÷ count is over all of them.
        return total * self.place.world / self.place.total(valid).clamp(min=1)

    def _update(self, loss: Tensor, done: float) -> None:
        """Warm-up over a twentieth of the steps, then polynomial decay (Chen et al. 2017)."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate * min(1.0, 20 * (done + 0.01)) * (1 - done) ** 0.9
        self._optimiser.step()

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W), with the network as it is now."""
        return build_predictor(self.network)

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights."""
        return {"segmenter": self.network}

    def compile(self) -> None:
        """Compile the networks in place."""
        self.network.compile()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights, the same on every rank."""
        return {"optimiser": self._optimiser.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from another training's state."""
        self._optimiser.load_state_dict(state["optimiser"])

    def rank_state(self) -> dict[str, Any]:
        """What differs between ranks: nothing."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def build_predictor(segmenter: nn.Module) -> Callable[[Tensor], Tensor]:
    """The segmenter in inference mode as a function of images in [-1, 1]; logits are fp32."""

    def predict(images: Tensor) -> Tensor:
        segmenter.eval()
        return segmenter(images).float()

    return predict


Predict = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [-1, 1] → fp32 logits (N, C, H, W)."""
