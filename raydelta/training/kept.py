"""An expert of the user's, which is measured and published as a stage like a trained one, and never changed."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.data.pixels import Batch
from raydelta.training.step import Training
from raydelta.training.supervised import build_predictor


class KeptTraining(Training):
    """No training: one step that does nothing."""

    def __init__(self, expert: nn.Module, place: Place) -> None:
        self.expert = expert.to(place.device)

    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W)."""
        return build_predictor(self.expert)

    def networks(self) -> dict[str, nn.Module]:
        """Nothing: the file of the network is copied into the stage."""
        return {}
