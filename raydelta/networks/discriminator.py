"""The PatchGAN discriminator (Isola et al. 2017)."""

import torch.nn.functional as F
from torch import Tensor, nn

from raydelta.config import DiscriminatorConfig
from raydelta.networks.layers import Conv2d, initialise, normalise


class Discriminator(nn.Module):
    """Scores patches of images: (N, 3, H, W) → (N, 1, h, w), high where a patch looks like the domain.

    With ``layers`` = 3 a patch is 70 pixels wide, with 2 it is 34, with 1 it is 16.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width, layers = config.width, config.layers
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        self.first = Conv2d(3, width, 4, stride=2, padding=1)
        self.middle = nn.ModuleList(
            [
                Conv2d(
                    widths[level], widths[level + 1], 4, stride=2 if level + 1 < layers else 1, padding=1, bias=False
                )
                for level in range(layers)
            ]
        )
        self.last = Conv2d(widths[-1], 1, 4, padding=1)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(images), 0.2)
        for layer in self.middle:
            x = F.leaky_relu(normalise(layer(x)), 0.2)
        return self.last(x)
