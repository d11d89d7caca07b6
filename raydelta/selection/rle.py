"""Label Studio's run-length code of brush masks: masks in, lists of bytes out, and back.

A stream of bits: 32 for the number of values, 5 for the bits of a value less one, 4 x 4 for the bits of a run's length
less one; then runs: 1 bit whether a value repeats, 2 bits which length is meant, the length less one, and the value
once or each value. The values are the RGBA bytes of an image; alpha above 127 is in the mask.
"""

import numpy as np
from numpy.typing import NDArray

SIZES = (3, 4, 8, 16)  # bits of the four lengths
CHANNELS = 4


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """A mask [H, W] as a list of bytes."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, CHANNELS)
    starts = np.flatnonzero(np.diff(values, prepend=-1 - values[:1].astype(int)))
    lengths = np.diff(np.append(starts, len(values)))
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = f"{values[start]:08b}"
        while length:
            run = min(length, 1 << SIZES[-1])
            index = next(index for index, size in enumerate(SIZES) if run <= 1 << size)
            bits.append(f"1{index:02b}{run - 1:0{SIZES[index]}b}{value}")
            length -= run
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), dtype=np.uint8) - ord("0")).tolist()


def decode_mask(code: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """The mask [H, W] behind a list of bytes.

    Raises:
        ValueError: it is damaged, or of another size.
    """
    bits = "".join(f"{byte:08b}" for byte in code)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("its run-length code ends too early")
        return int(bits[at - count : at], 2)

    size = read(32)
    if size != height * width * CHANNELS:
        raise ValueError(f"its run-length code has {size} values, not {CHANNELS} for each of {width}x{height} pixels")
    value_bits = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values, done = np.zeros(size, dtype=np.uint8), 0
    while done < size:
        repeats = read(1)
        length = read(sizes[read(2)]) + 1
        if repeats:
            values[done : done + length] = read(value_bits)
        else:
            for place in range(done, min(done + length, size)):
                values[place] = read(value_bits)
        done += length
    return values.reshape(height, width, CHANNELS)[..., -1] > 127
