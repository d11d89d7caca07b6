"""Label sets: which images belong to a label budget. Seeded, nested, spread over the sequences.

The order is drawn once per seed. Its first images validate, the next ones train, so the 14 training images are the
first 14 of the 37, and every budget is validated on the same images. ``labels.ids`` gives an order of chosen labels
instead of the seeded one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raydelta.config import LabelCells, LabelConfig, LabelIds
from raydelta.data.taxonomy import IGNORE
from raydelta.errors import UserError

Grid = tuple[int, int]
"""Columns and rows of the cells of an image."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first column and row outside."""


def cell_box(cell: int, grid: Grid, size: tuple[int, int]) -> Box:
    """The box of a cell in an image of (width, height); cells are numbered row by row."""
    (columns, rows), (width, height) = grid, size
    row, column = divmod(cell, columns)
    left, top = column * width // columns, row * height // rows
    return left, top, -(-(column + 1) * width // columns), -(-(row + 1) * height // rows)


def order_labels(labelled: Sequence[tuple[str, str]], seed: int) -> list[str]:
    """All labelled images in the order in which they would be bought: sequences in turn, seeded within each.

    Args:
        labelled: (id, sequence) of every image that has a label.
    """
    generator = np.random.default_rng([seed, 0x1ABE1])
    by_sequence: dict[str, list[str]] = defaultdict(list)
    for name, sequence in sorted(labelled):
        by_sequence[sequence].append(name)
    queues = [list(generator.permutation(by_sequence[sequence])) for sequence in sorted(by_sequence)]
    queues = [queues[index] for index in generator.permutation(len(queues))]
    longest = max(map(len, queues), default=0)
    return [str(queue[turn]) for turn in range(longest) for queue in queues if turn < len(queue)]


def choose_labels(
    labelled: Sequence[tuple[str, str]], config: LabelConfig, seed: int, budget: int
) -> tuple[list[str], list[str]]:
    """The ids of the training labels and of the validation labels.

    Args:
        budget: training labels; -1 for all that validation leaves.

    Raises:
        UserError: there are fewer labels than asked for, or ``labels.ids`` buys one that validates.
    """
    order = order_labels(labelled, seed)
    if config.validation + max(0, budget) > len(order):
        raise UserError(
            f"labels.budget = {budget} and labels.validation = {config.validation} ask for more labels than the "
            f"training split has ({len(order)}); lower one of them"
        )
    named = config.ids.validation if config.ids else ()
    if named and config.validation > len(named):
        raise UserError(f"labels.validation = {config.validation}, but labels.ids names {len(named)} to validate")
    validation = list(named or order)[: config.validation]
    rest = [name for name in order if name not in set(validation)]
    if config.ids is not None and budget >= 0:
        rest = list(config.ids.train)
        both = sorted(set(rest) & set(validation))
        if both:
            raise UserError(
                f"labels.ids: {', '.join(both[:5])} would be trained on and validate too (seed {seed}); take it out of "
                "the list, or name the validation images there"
            )
        if budget > len(rest):
            raise UserError(f"labels.budget = {budget}, but labels.ids names {len(rest)} to train on; lower it")
    return rest if budget < 0 else rest[:budget], validation


def check_bought(ids: LabelIds, labelled: Mapping[str, bool]) -> None:
    """Check that every named id has a label in the training split.

    Args:
        labelled: id → whether it has a label, of every image of the training split.

    Raises:
        UserError: an id that the split does not have, or has no label for.
    """
    names = [*ids.train, *ids.validation]
    for rule, bad in (
        ("no such photographs in the training split", [name for name in names if name not in labelled]),
        ("without a label there", [name for name in names if not labelled.get(name, True)]),
    ):
        if bad:
            raise UserError(f"labels.ids: {', '.join(bad[:5])} ({len(bad)} of {len(names)}): {rule}")


def cells_mask(cells: Sequence[int], grid: Grid, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels of an image of (width, height) lie in one of the cells, [H, W]."""
    mask = np.zeros(size[::-1], dtype=np.bool_)
    for cell in cells:
        left, top, right, bottom = cell_box(cell, grid, size)
        mask[top:bottom, left:right] = True
    return mask


def keep_bought(ids: Sequence[str], labels: NDArray[np.uint8], cells: LabelCells | None) -> NDArray[np.uint8]:
    """Labels (N, H, W), void outside the cells that were bought; an image without named cells keeps its whole label."""
    if cells is None:
        return labels
    size = labels.shape[2], labels.shape[1]
    kept = [
        np.where(cells_mask(cells.images[name], cells.grid, size), label, IGNORE) if name in cells.images else label
        for name, label in zip(ids, labels, strict=True)
    ]
    return np.stack(kept).astype(np.uint8)


def count_bought(ids: Sequence[str], cells: LabelCells | None) -> float:
    """How many whole labels these images amount to: of one with named cells, only the share of the cells counts."""
    if cells is None:
        return len(ids)
    whole = cells.grid[0] * cells.grid[1]
    return sum(len(cells.images[name]) / whole if name in cells.images else 1 for name in ids)
