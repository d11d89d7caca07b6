"""What the loop drives: a training that makes steps and says what a checkpoint keeps of it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from raydelta.data.pixels import Batch


class Training(Protocol):
    """By default it compiles nothing and keeps nothing but the weights of its networks."""

    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One step; its losses. Collective: it may wait for the other ranks.

        Args:
            batch: images and labels per stream, of this rank.
            done: share of the training that is behind, in [0, 1).
        """
        ...

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] → fp32 logits (N, C, H, W), as the training is now."""
        ...

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights."""
        ...

    def compile(self) -> None:
        """Compile the networks in place."""
        return

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights, the same on every rank."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from another training's state."""
        return

    def rank_state(self) -> dict[str, Any]:
        """What a checkpoint keeps for each rank."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Continue from the state of the same rank."""
        return
