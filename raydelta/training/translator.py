"""The guided translator's step: a CycleGAN (Zhu et al. 2017) whose R2S is also taught by labels through the expert.

    L = (1 - α) · [ LSGAN(R2S) + LSGAN(S2R) + λ_real · |S2R(R2S(r)) - r| + λ_syn · |R2S(S2R(s)) - s| + identity terms ]
        + α · γ · [ CE(E(R2S(x)), y) + δ · Dice(E(R2S(x)), y) ]

with α = ``guidance.weight``, γ = ``guidance.scale`` and δ = ``guidance.dice``. With a teacher, unlabelled photographs
are among the x, and y is what the teacher sees in them (taught guidance). With ``guidance.strength`` below 1, E sees
x + u · (R2S(x) - x) for a random u, so that R2S's change helps by parts too. Knows no Ray and no files. For speed, the
translation and the identity forward of a generator go through it as one batch (instance norm keeps samples apart, so
nothing changes), and so do the real and fake images of a discriminator.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.config import Config, CycleConfig, GuidanceConfig
from raydelta.data.augment import build_colour
from raydelta.data.pixels import Batch
from raydelta.networks import Discriminator, Generator
from raydelta.networks.layers import freeze
from raydelta.training.losses import cross_entropy_sum, dice_loss, dice_sums, l1, lsgan
from raydelta.training.pool import ImagePool
from raydelta.training.step import Training
from raydelta.training.student import confident_labels
from raydelta.training.supervised import Predict


class TranslatorTraining(Training):
    """Both generators, both discriminators, their optimisers and pools, and the step that trains them."""

    def __init__(self, config: Config, expert: nn.Module | None, place: Place, teacher: Predict | None = None) -> None:
        """
        Args:
            teacher: labels the photographs of ``real`` that are more than there are synthetic images, for guidance.
        """
        self.guidance: GuidanceConfig = config.guidance
        self.cycle: CycleConfig = config.cycle
        self.settings, self.place, self.teacher = config.translator, place, teacher
        self._jitter = build_colour(config.augment.colour)
        if expert is None and self.guidance.weight > 0:
            raise ValueError("guidance needs an expert")
        self.expert = (
            None if expert is None else expert.to(place.device, place.dtype)
        )  # frozen, so in the type it computes in

        self.r2s, self.s2r = (Generator(config.generator).to(place.device) for _ in range(2))
        self.d_synthetic, self.d_real = (Discriminator(config.discriminator).to(place.device) for _ in range(2))
        self.r2s_ema, self.s2r_ema = freeze(copy.deepcopy(self.r2s)), freeze(copy.deepcopy(self.s2r))
        self._r2s, self._s2r = place.parallel(self.r2s), place.parallel(self.s2r)
        self._d_synthetic, self._d_real = place.parallel(self.d_synthetic), place.parallel(self.d_real)

        self._generators: list[Tensor] = [*self.r2s.parameters(), *self.s2r.parameters()]
        self._discriminators: list[Tensor] = [*self.d_synthetic.parameters(), *self.d_real.parameters()]
        self._averages: list[Tensor] = [*self.r2s_ema.parameters(), *self.s2r_ema.parameters()]
        adam = {"betas": (0.5, 0.999), "fused": True}
        self._optimiser = torch.optim.Adam(self._generators, self.settings.learning_rate, **adam)  # type: ignore[arg-type]
        self._optimiser_d = torch.optim.Adam(
            self._discriminators,
            self.settings.discriminator_learning_rate,
            **adam,  # type: ignore[arg-type]
        )
        self.pool_synthetic, self.pool_real = ImagePool(self.settings.pool), ImagePool(self.settings.pool)

    def step(self, batch: Mapping[str, Batch], done: float) -> dict[str, Tensor]:
        """One step of the generators, then one of the discriminators. Collective.

        Args:
            batch: ``synthetic`` and ``real`` images, and where guidance is on ``labelled`` real images with labels;
                with a teacher more ``real`` ones than synthetic.
            done: share of the training that is behind, in [0, 1).

        Returns:
            Every loss term before its weight, detached, on the device.
        """
        self._set_rates(done)
        real, synthetic = (batch[name][0].to(self.place.dtype) for name in ("real", "synthetic"))
        weight = self.guidance.weight if done >= self.guidance.start else 0.0
        real, photographs = real[: len(synthetic)], batch["real"][0][len(synthetic) :]
        labelled, labels = batch["labelled"] if weight > 0 else (real[:0], None)
        if labels is not None:
            if self.teacher is not None:
                with torch.no_grad():
                    pseudo = confident_labels(self.teacher(photographs), self.guidance.confidence)
                labelled, labels = torch.cat([labelled, photographs]), torch.cat([labels, pseudo])
            labelled = self._jitter(labelled)

        _require_grad(self._discriminators, False)
        loss, terms, fake_real, fake_synthetic = self._generator_loss(real, synthetic, labelled, labels, weight)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._generators, 1 - self.settings.ema)

        _require_grad(self._discriminators, True)
        d_synthetic = _discriminator_loss(self._d_synthetic, synthetic, self.pool_synthetic.exchange(fake_synthetic))
        d_real = _discriminator_loss(self._d_real, real, self.pool_real.exchange(fake_real))
        self._optimiser_d.zero_grad(set_to_none=True)
        (d_synthetic + d_real).backward()
        self._optimiser_d.step()
        return terms | {"d_synthetic": d_synthetic.detach(), "d_real": d_real.detach()}

    def _generator_loss(
        self, real: Tensor, synthetic: Tensor, labelled: Tensor, labels: Tensor | None, weight: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        cycle, identity = self.cycle, self.cycle.identity > 0
        n, k = len(real), len(labelled)

        # r → R2S(r), s → R2S(s), x → R2S(x) in one forward; likewise S2R; then the way back.
        to_synthetic = torch.cat([real, labelled.to(real.dtype)] + [synthetic] * identity)
        fake_synthetic, guided, same_synthetic = self._r2s(to_synthetic).split([n, k, len(to_synthetic) - n - k])
        fake_real, same_real = self._s2r(torch.cat([synthetic] + [real] * identity)).tensor_split([len(synthetic)])
        cycled_synthetic, cycled_real = self._r2s(fake_real), self._s2r(fake_synthetic)

        # The discriminators are frozen here, so the bare modules: a DDP forward without a backward would not be whole.
        terms = {
            "gan_r2s": lsgan(self.d_synthetic(fake_synthetic), real=True),
            "gan_s2r": lsgan(self.d_real(fake_real), real=True),
            "cycle_real": l1(cycled_real, real),
            "cycle_synthetic": l1(cycled_synthetic, synthetic),
        }
        loss = terms["gan_r2s"] + terms["gan_s2r"]
        loss = loss + cycle.real * terms["cycle_real"] + cycle.synthetic * terms["cycle_synthetic"]
        if identity:
            terms["identity_real"] = l1(same_real, real)
            terms["identity_synthetic"] = l1(same_synthetic, synthetic)
            loss = loss + cycle.identity * cycle.real * terms["identity_real"]
            loss = loss + cycle.identity * cycle.synthetic * terms["identity_synthetic"]
        if weight > 0:
            assert labels is not None
            assert self.expert is not None
            logits = self.expert(_part_way(labelled, guided, self.guidance.strength))
            total, valid = cross_entropy_sum(logits, labels)
            # DDP averages gradients over the ranks: times the world, so that sum ÷ count is over all of them.
            taught = terms["guidance"] = total * self.place.world / self.place.total(valid).clamp(min=1)
            if self.guidance.dice > 0:
                terms["dice"] = dice_loss(self.place.total_with_gradient(dice_sums(logits, labels)))
                taught = taught + self.guidance.dice * terms["dice"]
            loss = (1 - weight) * loss + weight * self.guidance.scale * taught
        return loss, {name: term.detach() for name, term in terms.items()}, fake_real.detach(), fake_synthetic.detach()

    def translate(self, images: Tensor) -> Tensor:
        """Real images (N, 3, H, W) in [-1, 1] → the synthetic look, by the averaged R2S, clipped to [-1, 1]."""
        return self.r2s_ema(images.to(self.place.dtype)).clamp(-1, 1)

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Real images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W) of the expert on their translations."""

        def predict(images: Tensor) -> Tensor:
            assert self.expert is not None
            return self.expert(self.translate(images)).float()

        return predict

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps as weights."""
        names = ("r2s", "s2r", "d_synthetic", "d_real", "r2s_ema", "s2r_ema")
        return {name: getattr(self, name) for name in names}

    def compile(self) -> None:
        """Compile the networks in place, for each size of batch by itself: one graph for all sizes is slower."""
        for network in (self.r2s, self.s2r, self.d_synthetic, self.d_real, *([self.expert] if self.expert else [])):
            network.compile(dynamic=False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights, the same on every rank."""
        return {"generators": self._optimiser.state_dict(), "discriminators": self._optimiser_d.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from another training's state."""
        self._optimiser.load_state_dict(state["generators"])
        self._optimiser_d.load_state_dict(state["discriminators"])

    def rank_state(self) -> dict[str, Any]:
        """What differs between ranks: the image pools."""
        return {"pool_synthetic": self.pool_synthetic.images, "pool_real": self.pool_real.images}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Continue with another training's image pools."""
        for name in ("pool_synthetic", "pool_real"):
            images = state[name]
            getattr(self, name).images = None if images is None else images.to(self.place.device)

    def _set_rates(self, done: float) -> None:
        """Constant, then linear to zero over the last ``decay`` of the steps (Zhu et al. 2017)."""
        share = min(1.0, (1 - done) / self.settings.decay) if self.settings.decay > 0 else 1.0
        for optimiser, rate in (
            (self._optimiser, self.settings.learning_rate),
            (self._optimiser_d, self.settings.discriminator_learning_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * share


def _part_way(images: Tensor, translated: Tensor, least: float) -> Tensor:
    """Images a random share of the way to their translation, the share of each at least ``least``."""
    if least == 1:
        return translated
    share = torch.empty(len(images), 1, 1, 1).uniform_(least, 1)  # on the CPU: no wait for the device
    return torch.lerp(images.to(translated.dtype), translated, share.to(translated))


def _discriminator_loss(discriminator: nn.Module, images: Tensor, fakes: Tensor) -> Tensor:
    scores, fake_scores = discriminator(torch.cat([images, fakes])).split([len(images), len(fakes)])
    return 0.5 * (lsgan(scores, real=True) + lsgan(fake_scores, real=False))


def _require_grad(parameters: list[Tensor], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)
