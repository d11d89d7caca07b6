from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raydelta.training.appearance import build_randomise, swap_amplitude

HEIGHT, WIDTH, COUNT = 32, 64, 16


def picture(mean: float, spread: float = 0.02, seed: int = 0) -> Tensor:
    """Structure on all scales around a mean; channels differ a little."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator).cumsum(-1)
    noise = noise - noise.mean((2, 3), keepdim=True)
    return mean + torch.tensor([-0.05, 0.0, 0.05])[:, None, None] + spread * noise / noise.std()


def seeded(change: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return change(images)


def test_an_image_that_is_its_own_photograph_stays_as_it_is() -> None:
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    torch.testing.assert_close(swap_amplitude(images, images, 0.3), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wanted", [0.6, 0.1, -0.3, -0.6])
@pytest.mark.parametrize("mean", [0.3, -0.4])
def test_the_narrowest_band_swaps_the_mean_colour_and_leaves_the_structure(mean: float, wanted: float) -> None:
    synthetic, real = picture(mean), picture(wanted, seed=1)
    changed = swap_amplitude(synthetic, real, 1e-6)
    torch.testing.assert_close(changed.mean((2, 3)), real.mean((2, 3)), atol=1e-4, rtol=0)
    structure, before = (images - images.mean((2, 3), keepdim=True) for images in (changed, synthetic))
    torch.testing.assert_close(structure, before, atol=1e-5, rtol=0)


def test_the_band_has_the_photographs_amplitude_and_the_phase_stays() -> None:
    synthetic, real = picture(0.3), picture(0.4, seed=1)
    before, photograph, after = (
        torch.fft.fft2(images.double()) for images in (synthetic, real, swap_amplitude(synthetic, real, 0.1))
    )
    reach = int(0.1 * HEIGHT)
    rows, columns = (torch.fft.fftfreq(size, 1 / size).abs() <= reach for size in (HEIGHT, WIDTH))
    low = rows[:, None] & columns
    torch.testing.assert_close(after.abs(), torch.where(low, photograph, before).abs(), atol=1e-3, rtol=1e-3)
    assert (after - torch.polar(after.abs(), before.angle())).abs().max() < 1e-3
    assert not torch.allclose(after.abs()[..., low], before.abs()[..., low], rtol=0.1)


def test_swapped_images_stay_within_range_and_keep_their_edges() -> None:
    synthetic = torch.full((2, 3, HEIGHT, WIDTH), -0.9)
    synthetic[..., WIDTH // 2 :] = 0.9
    real = torch.rand(2, 3, HEIGHT, WIDTH) * 0.4 + 0.6
    changed = swap_amplitude(synthetic, real, 0.05)
    assert changed.shape == synthetic.shape
    assert changed.min() >= -1 and changed.max() <= 1
    steps = changed.diff(dim=-1).mean((0, 1, 2)).abs()
    assert steps.argmax() == WIDTH // 2 - 1


def halves() -> Tensor:
    images = torch.full((COUNT, 3, HEIGHT, WIDTH), -0.5)
    images[..., WIDTH // 2 :] = torch.tensor([0.1, 0.3, 0.5])[:, None, None]
    return images


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_randomising_changes_every_image_in_its_own_way_within_range(strength: float) -> None:
    images = torch.rand(COUNT, 3, HEIGHT, WIDTH) * 2 - 1
    changed = seeded(build_randomise(strength), images, 0)
    assert (changed.shape, changed.dtype) == (images.shape, torch.float32)
    assert changed.isfinite().all()
    assert changed.min() >= -1 and changed.max() <= 1
    assert ((changed - images).abs().mean((1, 2, 3)) > 0.01).float().mean() > 0.7
    colours = seeded(build_randomise(strength), halves(), 0).mean((2, 3))
    assert colours.std(0).min() > 0.02


def test_randomising_keeps_the_edges_where_they_are_and_makes_no_new_ones() -> None:
    changed = seeded(build_randomise(0.5), halves(), 0)
    profile = changed.mean(2)
    left, right = profile[..., 2 : WIDTH // 2 - 2], profile[..., WIDTH // 2 + 2 : -2]
    assert left.std(-1).max() < 0.08 and right.std(-1).max() < 0.08
    jump = (right.mean(-1) - left.mean(-1)).amax(1)
    assert (jump > 0.2).float().mean() > 0.7


def test_a_stronger_randomisation_changes_more_and_none_at_all_nearly_nothing() -> None:
    images = torch.rand(COUNT, 3, HEIGHT, WIDTH) * 2 - 1
    weak, strong = (
        (seeded(build_randomise(strength), images, 0) - images).abs().mean().item() for strength in (0.2, 1.0)
    )
    assert strong > 1.5 * weak
    torch.testing.assert_close(seeded(build_randomise(0.0), images, 0), images, atol=1e-4, rtol=0)


def test_torchs_seed_decides() -> None:
    images = torch.rand(COUNT, 3, HEIGHT, WIDTH) * 2 - 1
    first, again, other = (seeded(build_randomise(0.7), images, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
