"""A segmenter small enough to train in a test, and images that it can learn."""

import torch
from torch import Tensor, nn

CLASSES = 3


def build_network(norm: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(6, CLASSES, 1))


def colourful(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose brightest channel is the label."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1
    return images, images.argmax(1)
