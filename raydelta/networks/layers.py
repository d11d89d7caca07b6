"""The layers that generator and discriminator share.

Weights stay in fp32 and are cast to the activation's type inside the convolution: on CPU that beats autocast, which
casts on every operator, and it needs no context manager.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """Convolution that computes in its input's type."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *_cast(self, x))


class FoldedConv2d(nn.Conv2d):
    """The same for a kernel of odd size, stride 1 and an input of even height and width, on blocks of 2×2 pixels.

    A block is one place with four times the channels, and the kernel is laid out for each pixel of a block: the sums
    are those of ``Conv2d``. Three channels alone leave most of a CPU's vector empty, so a generator's last layer takes
    a quarter of the time in bf16, half of it in fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _cast(self, x)
        each = [F.pad(weight, (left, 1 - left, top, 1 - top)) for top in (0, 1) for left in (0, 1)]
        folded = F.pixel_unshuffle(torch.stack(each, 1).flatten(0, 1), 2)
        blocks = F.conv2d(F.pixel_unshuffle(x, 2), folded, None if bias is None else bias.repeat_interleave(4))
        return F.pixel_shuffle(blocks, 2)


class ConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution that computes in its input's type; takes no ``output_size``."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        weight, bias = _cast(self, x)
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding)  # type: ignore[arg-type]


def normalise(x: Tensor) -> Tensor:
    """Instance norm (Ulyanov et al. 2016) without parameters, through group norm's kernel.

    ``F.instance_norm``'s CPU backward was silently wrong at batch 1 for a ``channels_last`` gradient (torch 2.13), and
    group norm is slow in that layout: so always group norm, always contiguous.
    """
    return F.group_norm(x.contiguous(), x.shape[1])


def initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero (Radford et al. 2016, as in CycleGAN)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _cast(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    return layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype)


def freeze(network: nn.Module) -> nn.Module:
    """The network with its weights and statistics fixed; gradients still pass through to its input."""
    return network.eval().requires_grad_(False)
