"""How synthetic images can be made to look like photographs without a network: what every GAN has to beat.

Functions of float images (N, 3, H, W) in [-1, 1]; they keep the geometry, so labels stay true.
"""

from collections.abc import Callable

import torch
from kornia.augmentation import (
    AugmentationSequential,
    ColorJiggle,
    RandomGamma,
    RandomGaussianBlur,
    RandomGaussianNoise,
    RandomGrayscale,
)
from torch import Tensor


def swap_amplitude(synthetic: Tensor, real: Tensor, bandwidth: float) -> Tensor:
    """The synthetic images with the low frequencies' amplitude of the photographs. FDA, Yang & Soatto 2020.

    Args:
        real: as many photographs, of the same size.
        bandwidth: the square of swapped frequencies reaches so far from zero to each side, as a share of the shorter
            side; at least the mean colour is swapped.
    """
    height, width = synthetic.shape[-2:]
    reach = int(bandwidth * min(height, width))
    # In [0, 1], where the mean is an amplitude: below zero its sign would be a phase, which stays.
    spectrum = torch.fft.fft2((synthetic.float() + 1) / 2)
    amplitude, wanted = spectrum.abs(), torch.fft.fft2((real.float() + 1) / 2).abs()
    vertical = torch.fft.fftfreq(height, 1 / height, device=synthetic.device).abs() <= reach
    horizontal = torch.fft.fftfreq(width, 1 / width, device=synthetic.device).abs() <= reach
    low = vertical[:, None] & horizontal
    swapped = torch.polar(torch.where(low, wanted, amplitude), spectrum.angle())
    return torch.fft.ifft2(swapped).real.clamp(0, 1) * 2 - 1


def build_randomise(strength: float) -> Callable[[Tensor], Tensor]:
    """Strong photometric randomisation: colour, gamma, grey, blur and noise. Randomness: torch's global generator.

    Args:
        strength: in [0, 1]; 1 moves brightness by up to 80 % of the range and hue by up to a fifth of the circle.
    """
    around_one = (1 - 0.8 * strength, 1 + 0.8 * strength)
    change = AugmentationSequential(
        ColorJiggle(around_one, around_one, around_one, 0.2 * strength, p=0.9),
        RandomGamma((1 - 0.6 * strength, 1 + 0.8 * strength), p=0.5),
        RandomGrayscale(p=0.2 * strength),
        RandomGaussianBlur((3, 3), (0.1, 0.1 + 1.5 * strength), p=0.5),
        RandomGaussianNoise(std=0.08 * strength, p=0.5),
        data_keys=["input"],
    )
    return lambda images: change((images + 1.0) / 2.0).clamp(0, 1) * 2.0 - 1.0
