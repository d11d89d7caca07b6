"""Older fakes for the discriminators."""

import torch
from torch import Tensor


class ImagePool:
    """A history of fake images for the discriminators (Shrivastava et al. 2017): half of what comes back is older."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: Tensor | None = None  # (up to size, 3, H, W)

    def exchange(self, fakes: Tensor) -> Tensor:
        """Keep the fakes (N, 3, H, W) while there is room; then swap each with a random older one at even odds."""
        if self.size == 0:
            return fakes
        room = self.size - (0 if self.images is None else len(self.images))
        if room > 0:
            kept = fakes[:room]
            self.images = kept.clone() if self.images is None else torch.cat([self.images, kept])
            if room >= len(fakes):
                return fakes
        assert self.images is not None
        swapped = fakes.clone()
        for index in range(max(0, room), len(fakes)):
            if torch.rand(()) < 0.5:  # on the CPU: no wait for the device
                slot = int(torch.randint(self.size, ()))
                swapped[index] = self.images[slot]
                self.images[slot] = fakes[index]
        return swapped
