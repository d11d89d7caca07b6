"""What a selection costs to label: pixels, and clicks, which is what a person spends.

A polygon needs a click for every few pixels of the border between two classes; every class of an image or cell has to
be picked once; and to open an image costs, however little of it is labelled. The two constants are ours: set them to
what your labelling tool and people need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from raydelta.data.labels import Grid, cell_box, cells_mask

SEGMENT = 8
"""Pixels of a border, at the size of training, that one click follows."""

OPENING = 5
"""Clicks that it costs to open an image and find one's way in it."""


@dataclass(frozen=True)
class Price:
    """What some labels cost."""

    images: int  # opened
    pixels: int  # labelled, at the size of training
    clicks: int

    def __add__(self, other: "Price") -> "Price":
        return Price(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def __str__(self) -> str:
        return f"about {self.clicks} clicks in {self.images} images, {self.pixels} pixels"


def price_of(masks: Mapping[str, NDArray[np.uint8]], cells: Mapping[str, Sequence[int]], grid: Grid) -> Price:
    """The price of whole images, or of the cells named for some of them.

    Args:
        masks: id → classes [H, W] at the size of training: the truth where it is known, else a prediction.
        cells: id → cells; an image without an entry is labelled as a whole.
    """
    total = Price(0, 0, 0)
    for name, mask in masks.items():
        size = mask.shape[1], mask.shape[0]
        parts = [cell_box(cell, grid, size) for cell in cells[name]] if name in cells else [(0, 0, *size)]
        inside = cells_mask(cells[name], grid, size) if name in cells else np.ones(mask.shape, dtype=bool)
        down = (mask[1:] != mask[:-1]) & inside[1:] & inside[:-1]
        right = (mask[:, 1:] != mask[:, :-1]) & inside[:, 1:] & inside[:, :-1]
        segments = -(-int(down.sum() + right.sum()) // SEGMENT)
        classes = sum(len(np.unique(mask[top:bottom, left:right])) for left, top, right, bottom in parts)
        total += Price(1, int(inside.sum()), OPENING + segments + classes)
    return total
