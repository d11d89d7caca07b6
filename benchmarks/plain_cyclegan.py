"""The original CycleGAN maths (Zhu et al. 2017) written plainly in fp32; `benchmarks.step` compares against it.

One forward per image set, instance norm as a layer, discriminators on real and fake images one after the other, plain
Adam. Networks, losses and loss weights are those of `raydelta.training.translator` without guidance.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def generator(width: int, blocks: int) -> nn.Module:
    """ResNet generator with reflection padding."""

    def convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.InstanceNorm2d(outputs), nn.ReLU()]

    def transposed(inputs: int, outputs: int) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)
        return [layer, nn.InstanceNorm2d(outputs), nn.ReLU()]

    first = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
    down = [*convolution(width, 2 * width, 2), *convolution(2 * width, 4 * width, 2)]
    middle = [Block(4 * width) for _ in range(blocks)]
    up = [*transposed(4 * width, 2 * width), *transposed(2 * width, width)]
    return nn.Sequential(*first, *down, *middle, *up, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


class Block(nn.Module):
    """Residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*first, nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def discriminator(width: int, layers: int) -> nn.Module:
    """PatchGAN."""
    modules: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for level in range(layers):
        inputs, outputs = width * min(2**level, 8), width * min(2 ** (level + 1), 8)
        stride = 2 if level + 1 < layers else 1
        modules += [nn.Conv2d(inputs, outputs, 4, stride, 1), nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*modules, nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))


class PlainCycleGAN:
    """Both directions and the step of the original."""

    def __init__(self, width: int, blocks: int, d_width: int, d_layers: int, device: torch.device) -> None:
        self.r2s, self.s2r = (generator(width, blocks).to(device) for _ in range(2))
        self.d_synthetic, self.d_real = (discriminator(d_width, d_layers).to(device) for _ in range(2))
        generators = [*self.r2s.parameters(), *self.s2r.parameters()]
        discriminators = [*self.d_synthetic.parameters(), *self.d_real.parameters()]
        self.optimiser = torch.optim.Adam(generators, 2e-4, betas=(0.5, 0.999))
        self.optimiser_d = torch.optim.Adam(discriminators, 2e-4, betas=(0.5, 0.999))

    def step(self, real: Tensor, synthetic: Tensor) -> None:
        """One step of the generators, one of the discriminators (no pool: it costs nothing worth timing)."""
        for network in (self.d_synthetic, self.d_real):
            network.requires_grad_(False)
        self.optimiser.zero_grad()
        fake_synthetic, fake_real = self.r2s(real), self.s2r(synthetic)
        loss = gan(self.d_synthetic(fake_synthetic), 1.0) + gan(self.d_real(fake_real), 1.0)
        loss = loss + 10 * F.l1_loss(self.s2r(fake_synthetic), real) + 10 * F.l1_loss(self.r2s(fake_real), synthetic)
        loss = loss + 5 * F.l1_loss(self.s2r(real), real) + 5 * F.l1_loss(self.r2s(synthetic), synthetic)
        loss.backward()
        self.optimiser.step()
        for network in (self.d_synthetic, self.d_real):
            network.requires_grad_(True)
        self.optimiser_d.zero_grad()
        for network, images, fakes in (
            (self.d_synthetic, synthetic, fake_synthetic),
            (self.d_real, real, fake_real),
        ):
            (0.5 * (gan(network(images), 1.0) + gan(network(fakes.detach()), 0.0))).backward()
        self.optimiser_d.step()


def gan(scores: Tensor, target: float) -> Tensor:
    """LSGAN."""
    return F.mse_loss(scores, torch.full_like(scores, target))
