"""The ResNet generator of CycleGAN (Johnson et al. 2016; Zhu et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydelta.config import GeneratorConfig
from raydelta.networks.layers import Conv2d, ConvTranspose2d, FoldedConv2d, initialise, normalise


class Generator(nn.Module):
    """Translates images between the domains: (N, 3, H, W) in [-1, 1] → the same; H and W multiples of 4.

    With ``identity_start`` the network learns the difference to its input and starts at zero. The expert then sees
    untranslated images at first, not noise; and the output is not bounded by a tanh.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width, self.identity_start = config.width, config.identity_start
        self.first = FoldedConv2d(3, width, 7, bias=False)
        self.down = nn.ModuleList(
            [
                Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
                Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False),
            ]
        )
        self.blocks = nn.ModuleList([ResidualBlock(4 * width) for _ in range(config.blocks)])
        self.up = nn.ModuleList(
            [
                ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1, bias=False),
                ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1, bias=False),
            ]
        )
        self.last = FoldedConv2d(width, 3, 7)
        initialise(self)
        if self.identity_start:
            nn.init.zeros_(self.last.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(normalise(self.first(_reflect(images, 3))))
        for layer in self.down:
            x = F.relu(normalise(layer(x)))
        for block in self.blocks:
            x = block(x)
        for layer in self.up:
            x = F.relu(normalise(layer(x)))
        x = self.last(_reflect(x, 3))
        return images + x if self.identity_start else torch.tanh(x)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv2d(width, width, 3, bias=False)
        self.second = Conv2d(width, width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(normalise(self.first(_reflect(x, 1))))
        return x + normalise(self.second(_reflect(hidden, 1)))


def _reflect(x: Tensor, margin: int) -> Tensor:
    return F.pad(x, (margin, margin, margin, margin), mode="reflect")
