"""From scores to a batch: the hottest with windows and quotas, a stride over time, or the most typical of each cluster.

Images are rows 0..N-1 of a pool; a choice is (image, cell), and without a grid the one cell is the whole image.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydelta.data.labels import Grid
from raydelta.errors import UserError

CELLS_PER_IMAGE = 4
"""A batch takes at most so many cells of one image, as long as the others have enough."""

DRIVE_SHARE = 2
"""A batch takes at most so many times its share of the pool from a drive, as long as the others have enough."""


def choose_batch(
    scores: NDArray[np.floating],
    sequences: NDArray[np.integer],
    positions: NDArray[np.integer],
    count: int,
    window: int,
    seed: int,
    features: NDArray[np.floating] | None = None,
    labelled: NDArray[np.floating] | None = None,
    *,
    grid: Grid = (1, 1),
    bought: NDArray[np.bool_] | None = None,
) -> list[tuple[int, int]]:
    """The images and cells to label next, best first. Equal ones are taken at random.

    One by one, the largest of score × distance to the nearest image that is labelled or chosen (k-center greedy, Sener
    & Savarese 2018; without features the score alone). Frames less than ``window`` apart in one sequence are
    near-duplicates: a batch holds the same cell, or with a grid a cell beside it, of one of them only. With a grid an
    image and a drive give no more than their quota, unless there are too few others.

    Args:
        scores: (N, cells), at least 0; one cell is the whole image.
        sequences: (N,), the number of each image's sequence.
        positions: (N,), its place therein.
        window: at least 1, which allows every frame.
        features: (N, F).
        labelled: (L, F), features of the images that are labelled already.
        grid: columns and rows, if it is known which cell is beside which.
        bought: (N, cells), cells that are labelled already.

    Raises:
        UserError: the windows leave fewer than ``count``.
    """
    order = np.lexsort((np.random.default_rng([seed, 0x5E1EC7]).random(scores.size), -scores.ravel()))
    free = np.ones(scores.shape, dtype=bool) if bought is None else ~bought
    nearest = np.ones(len(scores), dtype=np.float32)
    measured = features is not None and labelled is not None and len(labelled) > 0
    if measured:
        assert features is not None and labelled is not None
        nearest = np.min([_distances(features, one) for one in labelled], axis=0)
    quotas = _Quotas(sequences, count) if grid != (1, 1) else None
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count:
        allowed = free & quotas.room[:, None] if quotas else free
        if quotas and not allowed.any():
            allowed = free
        values = np.where(allowed, scores * nearest[:, None], -1.0).ravel()[order]
        best = int(np.argmax(values))
        if values[best] < 0:
            raise UserError(
                f"count = {count}, but with a window of {window} frames the pool has only {len(chosen)} that are no "
                "near-duplicates: ask for fewer, or lower the window"
            )
        image, cell = divmod(int(order[best]), scores.shape[1])
        chosen.append((image, cell))
        duplicates = (sequences == sequences[image]) & (np.abs(positions - positions[image]) < window)
        duplicates[image] = False
        free[np.ix_(duplicates, _around(cell, grid))] = False
        free[image, cell] = False
        if quotas:
            quotas.take(image)
        if features is not None:
            distances = _distances(features, features[image])
            nearest = np.minimum(nearest, distances) if measured else distances
            measured = True
    return chosen


class _Quotas:
    """How much of a batch of cells an image and a drive may give."""

    def __init__(self, sequences: NDArray[np.integer], count: int) -> None:
        _, self._drives, sizes = np.unique(sequences, return_inverse=True, return_counts=True)
        self._of_drive = np.ceil(DRIVE_SHARE * count * sizes / len(sequences)).astype(int)
        self._of_image = np.full(len(sequences), CELLS_PER_IMAGE)

    @property
    def room(self) -> NDArray[np.bool_]:
        """(N,), images that may give one more cell."""
        return (self._of_image > 0) & (self._of_drive[self._drives] > 0)

    def take(self, image: int) -> None:
        """One cell of an image is chosen."""
        self._of_image[image] -= 1
        self._of_drive[self._drives[image]] -= 1


def _around(cell: int, grid: Grid) -> list[int]:
    """The cell and those beside it; the cell alone where there is no grid."""
    if grid == (1, 1):
        return [cell]
    columns, rows = grid
    row, column = divmod(cell, columns)
    return [
        below * columns + right
        for below in range(max(0, row - 1), min(rows, row + 2))
        for right in range(max(0, column - 1), min(columns, column + 2))
    ]


def _distances(features: NDArray[np.floating], one: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.linalg.norm(features - one, axis=1)


def stride_over_time(
    sequences: NDArray[np.integer], labelled: NDArray[np.bool_], count: int, seed: int
) -> list[tuple[int, int]]:
    """Images at even distances in time, every drive by its length: the baseline that a strategy has to beat.

    Every drive gets one label while there are enough, further ones go by its length (Sainte-Laguë); those that it has
    already count. A drive is then cut into as many equal spans of time as it will have labels, and the spans without a
    label give the frame in their middle.

    Args:
        sequences: (N,), the drive of each frame of the training split; the frames of a drive in their order in time.
        labelled: (N,), which of the frames have a label already.

    Raises:
        UserError: fewer than ``count`` frames have no label.
    """
    if count > int((~labelled).sum()):
        raise UserError(f"count = {count}, but the pool has {int((~labelled).sum())} photographs; ask for fewer")
    drives = {int(drive): np.flatnonzero(sequences == drive) for drive in np.unique(sequences)}
    before = {drive: int(labelled[frames].sum()) for drive, frames in drives.items()}
    added = dict.fromkeys(drives, 0)
    tie = dict(zip(drives, np.random.default_rng([seed, 0x57D]).random(len(drives)), strict=True))
    for _ in range(count):
        open_ones = [drive for drive, frames in drives.items() if before[drive] + added[drive] < len(frames)]

        def claim(drive: int) -> tuple[bool, float, float]:
            has = before[drive] + added[drive]
            return has == 0, len(drives[drive]) / (2 * has + 1), tie[drive]

        added[max(open_ones, key=claim)] += 1
    by_drive = [_fill_spans(frames, labelled[frames], added[drive]) for drive, frames in drives.items()]
    longest = max(map(len, by_drive))
    return [(picked[turn], 0) for turn in range(longest) for picked in by_drive if turn < len(picked)]


def _fill_spans(frames: NDArray[np.integer], labelled: NDArray[np.bool_], count: int) -> list[int]:
    """Frames of one drive, as even in time as those that are labelled allow."""
    if count == 0:
        return []
    spans = count + int(labelled.sum())
    at = np.arange(len(frames))
    middles = (np.arange(spans) + 0.5) * len(frames) / spans - 0.5
    taken = at[labelled]
    gaps = np.min(np.abs(middles[:, None] - taken), axis=1) if len(taken) else np.full(spans, np.inf)
    empty = np.sort(np.argsort(-gaps, kind="stable")[:count])  # the spans that are farthest from a label
    free, picked = ~labelled, []
    for middle in middles[empty]:
        nearest = int(np.argmin(np.where(free, np.abs(at - middle), np.inf)))
        free[nearest] = False
        picked.append(int(frames[nearest]))
    return picked


def choose_typical(
    features: NDArray[np.floating], labelled: Sequence[int], count: int, seed: int
) -> list[tuple[int, int]]:
    """The most typical image of each cluster, that of the largest cluster first.

    For the first labels: typical ones before unusual ones (TypiClust, Hacohen et al. 2022). k-medoids over whitened
    features, in which a dense neighbourhood weighs more; images that are labelled already are fixed medoids.

    Args:
        features: (N, F) of the pool and of the labelled images.
        labelled: rows that have a label.
    """
    points = whiten(features)
    weights = density(points)
    medoids, clusters = k_medoids(points, weights, count, labelled, seed)
    sizes = np.bincount(clusters, minlength=len(medoids))
    fresh = range(len(labelled), len(medoids))
    return [(int(medoids[index]), 0) for index in sorted(fresh, key=lambda index: -sizes[index])]


PARTS, KEPT = 32, 0.95
"""Whitened features: at most so many principal parts, or those that hold this share of the variance."""

NEIGHBOURS = 20
CHUNK = 512  # rows of a distance matrix at a time


def whiten(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Principal parts of the features, each with variance 1: (N, F) → (N, P), P at most 32."""
    centred = features.astype(np.float64)
    centred -= centred.mean(0)
    centred /= centred.std(0) + 1e-8  # layers differ in scale
    scaled, spread, _ = np.linalg.svd(centred, full_matrices=False)
    if spread[0] <= 1e-9:  # all images look alike
        return np.zeros((len(features), 1))
    enough = int(np.searchsorted(np.cumsum(spread**2) / (spread**2).sum(), KEPT)) + 1
    parts = min(PARTS, enough, int((spread > 1e-6 * spread[0]).sum()))
    return scaled[:, :parts] * np.sqrt(len(features))


def density(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 ÷ mean distance to the 20 nearest: the typicality of Hacohen et al. 2022; (N, P) → (N,)."""
    near = min(NEIGHBOURS, len(points) - 1)
    if near < 1:
        return np.ones(len(points))
    found = []
    for start in range(0, len(points), CHUNK):
        distances = _cross(points[start : start + CHUNK], points)
        found.append(np.partition(distances, near, axis=1)[:, : near + 1].sum(1) / near)  # its own distance is 0
    return 1 / np.maximum(np.concatenate(found), 1e-6)


def k_medoids(
    points: NDArray[np.floating], weights: NDArray[np.floating], count: int, fixed: Sequence[int], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Medoids and the cluster of every point; the fixed medoids come first.

    Seeds as k-means++ draws them (Arthur & Vassilvitskii 2007), then in turn: every point joins its nearest medoid,
    every free medoid moves to the member with the least weighted distance to all others.
    """
    random = np.random.default_rng([seed, 0x4ED01D])
    medoids = list(fixed)
    nearest = _cross(points, points[medoids]).min(1) if medoids else np.full(len(points), np.inf)
    for _ in range(count):
        chances = weights * np.where(np.isinf(nearest), 1.0, nearest**2)
        chances[medoids] = 0
        if chances.sum() <= 0:  # the rest are duplicates
            chances = np.ones(len(points))
            chances[medoids] = 0
        medoids.append(int(random.choice(len(points), p=chances / chances.sum())))
        nearest = np.minimum(nearest, _cross(points, points[medoids[-1:]])[:, 0])
    found = np.array(medoids, dtype=np.int64)
    for _ in range(50):
        clusters = _cross(points, points[found]).argmin(1)
        clusters[found] = np.arange(len(found))
        moved = found.copy()
        for index in range(len(fixed), len(found)):
            members = np.flatnonzero(clusters == index)
            costs = _cross(points[members], points[members]) @ weights[members]
            # the denser of two that are as central
            moved[index] = members[np.lexsort((-weights[members], costs.round(9)))[0]]
        if (moved == found).all():
            break
        found = moved
    return found, clusters


def _cross(some: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distances, (A, P) and (B, P) → (A, B)."""
    squares = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return np.sqrt(np.maximum(squares, 0))
