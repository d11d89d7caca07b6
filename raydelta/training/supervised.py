"""Supervised training of a segmenter: the expert's step. The student's step builds on it.

    L = mean over the domains d of  CE_w(f(x_d), y_d),   w_c ∝ 1 ÷ √frequency of class c in the domain

Each domain has a forward of its own, so that a batch norm sees one at a time. The network that is validated, kept and
used is a moving average of the weights (Polyak & Juditsky 1992); ``recalibrate`` gives it batch-norm statistics of the
images that it is meant for.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.data.pixels import Batch, to_float
from raydelta.data.streams import Images
from raydelta.networks.layers import freeze
from raydelta.training.losses import cross_entropy_sum
from raydelta.training.step import Training

WEIGHT_DECAY = 1e-2
CLIP = 5.0
"""Largest norm of a step's gradient."""

CALIBRATION_BATCH = 16


class SegmenterTraining(Training):
    """Trains a segmenter on the labelled images of one or several streams, each a domain."""

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        place: Place,
        *,
        ema: float = 0.99,
        encoder_rate: float = 1.0,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            ema: share of the average that stays in a step; less in the first steps.
            encoder_rate: learning rate of the network's ``encoder`` ÷ that of the rest; 0: its weights stay.
            weights: (C,), of the classes, for each stream; 1 where a stream is not named.
        """
        self.network = network.to(place.device).to(memory_format=torch.channels_last)
        encoder = set(network.get_submodule("encoder").parameters()) if encoder_rate < 1 else set()
        if encoder_rate == 0:
            network.get_submodule("encoder").requires_grad_(False)
        self.average = freeze(copy.deepcopy(self.network))
        self.learning_rate, self.place, self.ema = learning_rate, place, ema
        self.weights = {name: values.to(place.device) for name, values in (weights or {}).items()}
        self._forward = place.parallel(self.network)
        self._updates = 0
        self._followed: dict[str, Tensor] = {}  # the average's own statistics, while it has calibrated ones
        groups, self._rates = [], list[float]()
        for part, rate in ((False, 1.0), (True, encoder_rate)):
            own = [weight for weight in self.network.parameters() if (weight in encoder) == part]
            for decay, matrices in ((WEIGHT_DECAY, True), (0.0, False)):
                weights_of = [weight for weight in own if weight.requires_grad and (weight.ndim > 1) == matrices]
                if weights_of:
                    groups.append({"params": weights_of, "weight_decay": decay})
                    self._rates.append(rate)
        self._optimiser = torch.optim.AdamW(groups, learning_rate, fused=True)

    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One optimiser step. Collective.

        Args:
            batch: images and labels per stream, of this rank; every stream has labels.
            done: share of the training that is behind, in [0, 1).
        """
        self.network.train()
        loss = self.supervised_loss(batch)
        self.update(loss, done)
        return {"cross_entropy": loss.detach()}

    def supervised_loss(self, batch: Mapping[str, Batch]) -> Tensor:
        """The mean of the streams' cross entropies, each stream with a forward of its own. Collective."""
        losses = []
        for name, (images, labels) in batch.items():
            assert labels is not None
            losses.append(self.cross_entropy(self.logits(images), labels, name))
        return torch.stack(losses).mean()

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, C, H, W). Collective."""
        with torch.autocast(images.device.type, self.place.dtype, enabled=self.place.dtype != torch.float32):
            return self._forward(images.contiguous(memory_format=torch.channels_last))

    def cross_entropy(self, logits: Tensor, labels: Tensor, domain: str) -> Tensor:
        """The class-weighted mean over the valid pixels of all ranks. Collective."""
        total, valid = cross_entropy_sum(logits, labels, self.weights.get(domain))
        # DDP averages gradients over the ranks: times the world, so that sum ÷ count is over all of them.
        return total * self.place.world / self.place.total(valid).clamp(min=1)

    def update(self, loss: Tensor, done: float) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019), and of the average.

        The rate warms up over a twentieth of the steps, then decays polynomially (Chen et al. 2017).
        """
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * (self.learning_rate * min(1.0, 20 * (done + 0.01)) * (1 - done) ** 0.9)
        self._optimiser.step()
        self._updates += 1
        self.uncalibrate()
        follow(self.average, self.network, min(self.ema, self._updates / (self._updates + 9)))

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W), with the average as it is now."""
        return build_predictor(self.average)

    def calibrate(self, images: Images) -> None:
        """Give the average the batch-norm statistics of some images, until the next step.

        What is learned does not depend on it, nor on how often it is done.
        """
        self.uncalibrate()
        self._followed = _statistics(self.average)
        recalibrate(self.average, images, self.place.device)

    def uncalibrate(self) -> None:
        """Back to the statistics that follow the network's."""
        self.average.load_state_dict(self._followed, strict=False)
        self._followed = {}

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights; ``segmenter``, the average, is what is used."""
        return {"segmenter": self.average, "trained": self.network}

    def compile(self) -> None:
        """Compile the network in place, for each size of batch by itself."""
        self.network.compile(dynamic=False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights, the same on every rank."""
        followed = self._followed or _statistics(self.average)
        return {"optimiser": self._optimiser.state_dict(), "updates": self._updates, "statistics": followed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from another training's state."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._updates = state["updates"]
        self._followed = state.get("statistics", {})


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    """Move the average's weights and statistics towards the network's; ``keep`` of it stays."""
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in floating], [value for _, value in floating], 1 - keep)
    for mean, value in pairs:
        if not mean.is_floating_point():
            mean.copy_(value)


@torch.no_grad()
def recalibrate(network: nn.Module, images: Images, device: torch.device) -> None:
    """Replace the batch-norm statistics by those of some images, taken anew with the weights as they are now.

    Args:
        images: not augmented; labels are not looked at.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms or len(images) == 0:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()  # not the network: dropout stays off
    pixels = torch.from_numpy(images.pixels)
    for part in pixels.split(CALIBRATION_BATCH):
        network(to_float(part.to(device)).contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def build_predictor(segmenter: nn.Module) -> Callable[[Tensor], Tensor]:
    """The segmenter in inference mode as a function of images in [-1, 1]; logits are fp32."""

    def predict(images: Tensor) -> Tensor:
        segmenter.eval()
        return segmenter(images.contiguous(memory_format=torch.channels_last)).float()

    return predict


Predict = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [-1, 1] → fp32 logits (N, C, H, W)."""
