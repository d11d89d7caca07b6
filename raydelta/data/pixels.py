"""How the pixels of images become what networks see, and back."""

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor | None]
"""Images float (N, 3, H, W) in [-1, 1]; labels long (N, H, W) with IGNORE, or None."""

NORMALISATION = (-1.0, 1.0)
"""What 0 and 255 become before a network sees them."""


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 → float in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1], clipped → uint8 in 0..255."""
    return ((images.clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
