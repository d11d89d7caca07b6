import numpy as np
import pytest

from raydelta.selection.rle import decode_mask, encode_mask

MASK = np.zeros((4, 12), dtype=bool)
MASK[1:3, 2:9] = True
MASK[3, 0] = True
REFERENCE = [0, 0, 0, 192, 57, 27, 254, 55, 0, 195, 127, 248, 76, 3, 13, 255, 219, 0, 143, 255, 21, 128, 0]
"""The mask as Label Studio's own converter writes it (label_studio_converter 0.0.59, brush.encode_rle)."""


def test_a_mask_reads_and_is_written_as_by_label_studio() -> None:
    assert (decode_mask(REFERENCE, 4, 12) == MASK).all()
    assert encode_mask(MASK) == REFERENCE[: len(encode_mask(MASK))], "but for a last byte of padding"
    assert len(REFERENCE) - len(encode_mask(MASK)) in (0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_masks_of_any_size_survive(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((random.integers(1, 40), random.integers(1, 300))) < random.random()
    assert (decode_mask(encode_mask(mask), *mask.shape) == mask).all()


def test_long_runs_are_split() -> None:
    mask = np.ones((300, 400), dtype=bool)
    assert len(encode_mask(mask)) < 40
    assert decode_mask(encode_mask(mask), 300, 400).all()


def test_values_that_do_not_repeat_are_read() -> None:
    """Label Studio's brush paints soft edges: alpha changes from pixel to pixel."""
    alpha = [0, 200, 127, 128]
    values = [value for each in alpha for value in (7, 7, 7, each)]
    bits = f"{16:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + f"0{1:02b}{15:04b}" + "".join(f"{v:08b}" for v in values)
    code = np.packbits([int(bit) for bit in bits]).tolist()
    assert decode_mask(code, 1, 4).tolist() == [[False, True, False, True]]


def test_damaged_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="ends too early"):
        decode_mask(REFERENCE[:12], 4, 12)
    with pytest.raises(ValueError, match="has 192 values, not 4 for each of 5x5 pixels"):
        decode_mask(REFERENCE, 5, 5)
