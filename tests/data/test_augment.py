import pytest
import torch
from torch import Tensor

from raydelta.config import AugmentConfig
from raydelta.data.augment import build_augment, build_colour
from raydelta.data.pixels import to_float, to_uint8
from raydelta.data.taxonomy import IGNORE

HEIGHT, WIDTH, COUNT = 32, 64, 32
COLUMN = torch.arange(WIDTH).expand(HEIGHT, WIDTH)
ROW = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)
STEPS = torch.stack([4 * COLUMN, 8 * ROW, torch.full_like(ROW, 100)]).to(torch.uint8).repeat(COUNT, 1, 1, 1)


def labels_of(grid: Tensor) -> Tensor:
    return grid.to(torch.uint8).repeat(COUNT, 1, 1)


def noise() -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    images = torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    ids = torch.tensor([0, 3, 10, IGNORE], dtype=torch.uint8)
    return images, ids[torch.randint(0, 4, (COUNT, HEIGHT, WIDTH))]


@pytest.mark.parametrize("zoom", [False, True])
@pytest.mark.parametrize("crop", [1.0, 0.8, 0.5])
@pytest.mark.parametrize(("grid", "channel", "step"), [(COLUMN, 0, 4), (ROW, 1, 8)], ids=["columns", "rows"])
def test_image_and_label_go_through_one_geometry(
    zoom: bool, crop: float, grid: Tensor, channel: int, step: int
) -> None:
    """The image's colour says which column or row a pixel came from, and so does its label."""
    augment = build_augment(
        AugmentConfig(flip=0.5, crop=crop, zoom=1 / crop, colour=0.0), HEIGHT, WIDTH, zoom=zoom, colour=True
    )
    torch.manual_seed(0)
    images, labels = augment(STEPS, labels_of(grid))
    told_by_colour = (images[:, channel] + 1) * 127.5 / step
    assert (told_by_colour - labels).abs().max() < 0.7  # nearest and linear are at most half a pixel apart
    untouched = (labels == grid).all((1, 2))
    assert untouched.sum() < COUNT or (crop == 1 and grid is ROW)


def test_crops_differ_within_a_batch_and_keep_the_promised_area() -> None:
    augment = build_augment(AugmentConfig(flip=0.0, crop=0.5, colour=0.0), HEIGHT, WIDTH, zoom=False, colour=False)
    torch.manual_seed(0)
    widths, heights = (
        (labels.amax((1, 2)) - labels.amin((1, 2)) + 1).float()
        for labels in (augment(STEPS, labels_of(grid))[1] for grid in (COLUMN, ROW) if torch.manual_seed(0))
    )
    share = widths * heights / (WIDTH * HEIGHT)
    assert share.min() > 0.5 - 0.05
    assert share.max() <= 1
    assert len(set(share.tolist())) > COUNT // 4
    assert ((widths / heights - WIDTH / HEIGHT).abs() < 0.15).all()


def test_zoom_goes_in_and_out_and_mirrors_beyond_the_border() -> None:
    augment = build_augment(AugmentConfig(flip=0.0, zoom=2.0), HEIGHT, WIDTH, zoom=True, colour=False)
    torch.manual_seed(0)
    columns = augment(STEPS, labels_of(COLUMN))[1]
    assert columns is not None
    seen = (columns.amax((1, 2)) - columns.amin((1, 2)) + 1) / WIDTH
    assert seen.min() < 0.7 and (seen == 1).any()
    assert (columns.diff(dim=-1).abs() <= 3).all()  # no jump where the image ends
    rising = columns.diff(dim=-1) >= 0
    assert (~rising).any() and rising.float().mean() > 0.5  # mirrored in some places


def test_labels_keep_their_ids_and_get_no_new_ones() -> None:
    augment = build_augment(AugmentConfig(flip=0.5, crop=0.4, colour=0.5), HEIGHT, WIDTH, zoom=True, colour=True)
    images, labels = noise()
    _, augmented = augment(images, labels)
    assert set(augmented.unique().tolist()) == {0, 3, 10, IGNORE}
    _, clean = augment(images, torch.zeros_like(labels))
    assert (clean == 0).all()


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("colour", [True, False])
def test_what_comes_out(with_labels: bool, colour: bool) -> None:
    augment = build_augment(AugmentConfig(flip=0.5, crop=0.5, colour=0.9), HEIGHT, WIDTH, zoom=colour, colour=colour)
    images, labels = noise()
    pixels, masks = augment(images, labels if with_labels else None)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (COUNT, 3, HEIGHT, WIDTH))
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert pixels.min() < -0.9 and pixels.max() > 0.9
    if with_labels:
        assert (masks.dtype, masks.shape) == (torch.long, (COUNT, HEIGHT, WIDTH))
    else:
        assert masks is None


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flips_always_or_never(probability: float) -> None:
    augment = build_augment(
        AugmentConfig(flip=probability, crop=1.0, colour=0.0), HEIGHT, WIDTH, zoom=False, colour=False
    )
    images, labels = noise()
    pixels, masks = augment(images, labels)
    expected, truth = (images.flip(-1), labels.flip(-1)) if probability else (images, labels)
    assert torch.equal(to_uint8(pixels), expected)
    assert torch.equal(masks, truth.long())
    assert torch.equal(augment(images, None)[0], pixels)


def test_with_everything_off_nothing_changes() -> None:
    augment = build_augment(
        AugmentConfig(flip=0.0, crop=1.0, zoom=1.0, colour=0.0), HEIGHT, WIDTH, zoom=True, colour=True
    )
    images, labels = noise()
    pixels, masks = augment(images, labels)
    torch.testing.assert_close(pixels, to_float(images), atol=1e-6, rtol=0)
    assert torch.equal(masks, labels.long())


def test_colour_changes_the_image_alone_and_only_where_it_is_asked_for() -> None:
    settings = AugmentConfig(flip=0.0, crop=1.0, zoom=1.0, colour=0.5)
    images, labels = noise()
    changed, masks = build_augment(settings, HEIGHT, WIDTH, zoom=True, colour=True)(images, labels)
    kept, _ = build_augment(settings, HEIGHT, WIDTH, zoom=False, colour=False)(images, labels)
    moved = (changed - to_float(images)).abs().amax((1, 2, 3)) > 0.01
    assert moved.sum() > COUNT // 2
    assert torch.equal(masks, labels.long())
    torch.testing.assert_close(kept, to_float(images), atol=1e-6, rtol=0)


def test_torchs_seed_decides() -> None:
    augment = build_augment(AugmentConfig(flip=0.5, crop=0.5, colour=0.5), HEIGHT, WIDTH, zoom=True, colour=True)
    images, labels = noise()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


def test_colour_alone_stays_within_range_and_changes_most_images_each_in_its_own_way() -> None:
    images = to_float(noise()[0])
    changed = build_colour(0.5)(images)
    assert (changed.shape, changed.dtype) == (images.shape, torch.float32)
    assert changed.min() >= -1 and changed.max() <= 1
    assert ((changed - images).abs().amax((1, 2, 3)) > 0.01).sum() > COUNT // 2
    assert len(set(changed.mean((1, 2, 3)).tolist())) > COUNT // 2


def test_colour_alone_keeps_the_geometry() -> None:
    """Every level goes to one level in every row, and brighter ones stay brighter; a blur reaches one pixel far."""
    images = to_float((16 * (COLUMN // 4)).to(torch.uint8).repeat(COUNT, 3, 1, 1))
    torch.manual_seed(0)
    changed = build_colour(0.9)(images)
    torch.testing.assert_close(changed, changed[:, :, :1].expand_as(changed))
    bands = changed.unflatten(-1, (-1, 4))
    torch.testing.assert_close(bands[..., 1], bands[..., 2])
    assert (bands[..., 1].diff(dim=-1) >= -1e-6).all()
    assert (bands[..., 1].diff(dim=-1) > 0).float().mean() > 0.4


def test_no_colour_is_no_change_at_all() -> None:
    images = to_float(noise()[0])
    assert torch.equal(build_colour(0.0)(images), images)


def test_torchs_seed_decides_on_colour() -> None:
    change, images, results = build_colour(0.5), to_float(noise()[0]), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(change(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_uint8_and_float_are_one_to_one() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_float(levels)
    assert torch.equal(to_uint8(values), levels)
    assert (values.min(), values.max()) == (-1, 1)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
