"""Photographs in the colours of the synthetic images: a linear map of each channel, from the statistics of both sets.

After Reinhard et al. 2001, for whole sets and in RGB:

    x' = (x - mean of the photographs) ÷ their deviation × deviation of the synthetic images + mean of those
"""

import torch
from torch import Tensor, nn

DOMAINS = ("synthetic", "real")


class Colours(nn.Module):
    """Photographs (N, 3, H, W) in [-1, 1] → the same in the synthetic images' colours, clipped to [-1, 1]."""

    moments: Tensor

    def __init__(self) -> None:
        super().__init__()
        # for each domain mean and mean square of the channels: (2, 2, 3); the same at first, so nothing changes
        self.register_buffer("moments", torch.tensor([[[0.0] * 3, [1.0] * 3]] * 2))

    def forward(self, images: Tensor) -> Tensor:
        means, squares = self.moments[:, 0, :, None, None], self.moments[:, 1, :, None, None]
        deviations = (squares - means.square()).clamp(min=1e-6).sqrt()
        standard = (images - means[1]) / deviations[1]
        return (standard * deviations[0] + means[0]).clamp(-1, 1)
