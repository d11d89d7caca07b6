"""The procedural streets: exact masks, the same bits everywhere, two looks that differ."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from raydelta.data.simulator.scene import simulate
from raydelta.data.taxonomy import CAMVID11
from raydelta.errors import UserError

LOOKS = ("synthetic", "street")
DIGEST = """
import hashlib
from raydelta.data.simulator.scene import simulate
for look in ("street", "synthetic"):
    print(hashlib.sha256(b"".join(part.tobytes() for part in simulate(5, seed=3, look=look))).hexdigest())
"""


def _digest(look: str) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in simulate(5, seed=3, look=look))).hexdigest()


def test_same_bits_in_another_process_and_order():
    simulate(1)  # fills other textures first: their order must not matter
    here = [_digest(look) for look in ("synthetic", "street")][::-1]
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.split()
    assert here == there


@pytest.mark.parametrize("look", LOOKS)
def test_shapes_ids_and_every_class(look):
    counts = np.zeros(256, int)
    for index in range(40):
        image, mask = simulate(index, look=look, width=128, height=64)
        assert image.shape == (64, 128, 3) and image.dtype == np.uint8
        assert mask.shape == (64, 128) and mask.dtype == np.uint8
        counts += np.bincount(mask.ravel(), minlength=256)
    assert counts[len(CAMVID11) :].sum() == 0
    shares = counts[: len(CAMVID11)] / counts.sum()
    assert (shares > 0.001).all(), dict(zip(CAMVID11.classes, shares, strict=True))
    share = dict(zip(CAMVID11.classes, shares, strict=True))
    assert share["road"] > 0.1 and share["building"] > 0.1 and share["sky"] > 0.03  # still a street


@pytest.mark.parametrize("look", LOOKS)
def test_one_scene_at_two_sizes(look):
    """The content depends on the index, not on the size; a neighbouring scene agrees far less."""
    same, other = [], []
    for index in range(6):
        large = simulate(index, look=look, width=256, height=128)[1]
        small = simulate(index, look=look, width=128, height=64)[1]
        same.append((large[1::2, 1::2] == small).mean())
        other.append((simulate(index + 1, look=look, width=128, height=64)[1] == small).mean())
    assert min(same) > 0.93
    assert np.mean(other) < 0.8


def _boundary_contrast(image: np.ndarray, mask: np.ndarray, shift: int) -> float:
    """Mean colour step across the mask's vertical edges, after shifting the mask sideways."""
    grey = image.astype(np.float32).mean(2)
    step = np.abs(grey[:, 2:] - grey[:, :-2])  # around pixel i + 1
    edges = np.roll(mask[:, 1:] != mask[:, :-1], shift, axis=1)[:, : step.shape[1]]
    return float(step[edges].mean())


@pytest.mark.parametrize("look", LOOKS)
def test_image_edges_lie_on_mask_edges(look):
    """Colour changes most exactly where the label does: a mask that is 3 pixels off sees much weaker edges."""
    scenes = [simulate(index, look=look) for index in range(8)]
    contrast = {shift: np.mean([_boundary_contrast(*scene, shift) for scene in scenes]) for shift in (-3, 0, 3)}
    assert contrast[0] > 1.25 * max(contrast[-3], contrast[3]), contrast


def test_perspective():
    """Sky is never under the road, and the ground is widest at the bottom."""
    for index in range(8):
        mask = simulate(index)[1]
        rows = np.arange(128)[:, None]
        assert (rows * (mask == 0)).max() < 0.62 * 128
        assert (rows + np.zeros_like(mask))[mask == 3].min() > 0.38 * 128
        ground = np.isin(mask, (3, 4)).sum(1)
        assert ground[-32:].sum() >= ground[64:96].sum()


def test_looks_seeds_and_indices_differ():
    base = simulate(7)[1]
    for other in (simulate(7, look="street"), simulate(7, seed=1), simulate(8)):
        assert (other[1] == base).mean() < 0.9
    brightness = {look: np.mean([simulate(i, look=look)[0].std(2).mean() for i in range(10)]) for look in LOOKS}
    assert brightness["synthetic"] > 1.3 * brightness["street"]  # the stand-in is duller


def test_odd_sizes():
    for width, height in ((33, 47), (200, 90), (32, 32)):
        image, mask = simulate(2, look="street", width=width, height=height)
        assert image.shape == (height, width, 3) and mask.shape == (height, width) and mask.max() < len(CAMVID11)


@pytest.mark.parametrize("wrong", [{"width": 31}, {"height": 8}, {"look": "real"}])
def test_bad_arguments_are_named(wrong):
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        simulate(0, **wrong)
