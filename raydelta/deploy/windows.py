"""Ids of photographs of any size: large ones in windows that overlap, enlarged in strips, so that memory is bounded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raydelta.deploy.network import Deployed, enlarge

BATCH = 8
STRIP = 64  # rows of a photograph whose logits are there at once


def segment(
    model: Deployed, photographs: Sequence[Tensor], window: tuple[int, int] | None = None, batch: int = BATCH
) -> list[Tensor]:
    """Ids uint8 (H, W) of each photograph uint8 (H, W, 3), in the order given, on the model's device.

    Args:
        batch: photographs of one size that are predicted together.
        window: width and height, in pixels at the scale of training, of what is predicted at once; twice the size of
            training, if None.
    """
    device = next(model.parameters()).device
    window = window or (2 * model.config.width, 2 * model.config.height)
    alike: dict[torch.Size, list[int]] = {}
    for place, photograph in enumerate(photographs):
        alike.setdefault(photograph.shape, []).append(place)
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        for shape, places in alike.items():
            for chunk in (places[start : start + batch] for start in range(0, len(places), batch)):
                # One by one what is as large as a photograph.
                small = torch.cat([model.prepare(photographs[place][None].to(device)) for place in chunk])
                for place, logits in zip(chunk, predict_windows(model, small, window), strict=True):
                    found[place] = enlarged_ids(logits, shape[0], shape[1])
    return [found[place] for place in range(len(photographs))]


def predict_windows(model: Deployed, images: Tensor, window: tuple[int, int]) -> Tensor:
    """Logits (N, C, h, w) of images (N, 3, h, w) in [-1, 1], where they are larger than the window in overlapping ones.

    Neighbours overlap by half or more. A window's weight falls linearly towards its border.
    """
    step = model.config.multiple
    high, wide = (min(size, -(-most // step) * step) for size, most in zip(images.shape[2:], window[::-1], strict=True))
    if (high, wide) == images.shape[2:]:
        return model.networks(images)
    weight = _tent(high, images)[:, None] * _tent(wide, images)
    total = images.new_zeros(len(images), len(model.config.taxonomy), *images.shape[2:])
    summed = images.new_zeros(images.shape[2:])
    for top in _starts(images.shape[2], high):
        for left in _starts(images.shape[3], wide):
            place = ..., slice(top, top + high), slice(left, left + wide)
            total[place] += model.networks(images[place]) * weight
            summed[place] += weight
    return total / summed


def enlarged_ids(logits: Tensor, height: int, width: int) -> Tensor:
    """Ids uint8 (H, W) of logits (C, h, w) that are enlarged to that size, a strip at a time: whole, they would take
    4 C bytes per pixel of a photograph."""
    rows = (torch.arange(height, device=logits.device) + 0.5) * (logits.shape[1] / height) - 0.5
    rows = rows.clamp(0, logits.shape[1] - 1)
    strips = []
    for strip in rows.split(STRIP):
        above = strip.floor().long()
        below = (above + 1).clamp(max=logits.shape[1] - 1)
        between = torch.lerp(logits[:, above], logits[:, below], (strip - above)[:, None].to(logits.dtype))
        strips.append(enlarge(between[None], len(strip), width).max(1).indices[0].byte())
    return torch.cat(strips)


def _tent(size: int, like: Tensor) -> Tensor:
    ramp = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(ramp, ramp.flip(0))


def _starts(size: int, window: int) -> list[int]:
    return [*range(0, size - window, window // 2), size - window]
