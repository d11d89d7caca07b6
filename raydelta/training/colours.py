"""The expert behind photographs in the colours of the synthetic images: nothing is trained, and no label is used."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.data.pixels import Batch
from raydelta.networks.colours import DOMAINS, Colours
from raydelta.training.step import Training
from raydelta.training.supervised import build_predictor


class ColourTraining(Training):
    """Takes the channels' statistics of both sets, a batch of each at a step."""

    def __init__(self, expert: nn.Module, place: Place) -> None:
        self.expert, self.place = expert.to(place.device), place
        self.colours = Colours().to(place.device)
        self._steps = 0

    @torch.no_grad()
    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One batch of ``synthetic`` images and of ``real`` photographs more; all count the same. Collective."""
        images = [batch[name][0] for name in DOMAINS]
        moments = torch.stack([torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]) for x in images])
        self._steps += 1
        self.colours.moments.lerp_(self.place.total(moments) / self.place.world, 1 / self._steps)
        return {}

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W), with the statistics as they are now."""
        return build_predictor(nn.Sequential(self.colours, self.expert))

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights."""
        return {"colours": self.colours}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        return {"steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from another training's state."""
        self._steps = state["steps"]
