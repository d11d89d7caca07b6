"""How many more labels so many points of mIoU would take: a law fitted to a measured curve, with its uncertainty.

    mIoU(n) = a - b · n^(-c)     b ≥ 0, c > 0

the power law that errors follow over the amount of training data (Hestness et al. 2017). Bootstrapped over the seeds,
and never read further than twice the largest measured number of labels.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydelta.errors import UserError

RESAMPLES = 500
INTERVAL = 0.8
FURTHEST = 2  # times the largest measured number of labels
EXPONENTS = np.geomspace(0.05, 3, 80)


@dataclass(frozen=True)
class Advice:
    """Labels to add to the largest measured number; None where that is beyond what may be extrapolated."""

    points: float
    measured: int
    more: int | None
    low: int | None
    high: int | None

    def __str__(self) -> str:
        limit = f"more than {(FURTHEST - 1) * self.measured}"
        if self.more is None:
            return (
                f"+{self.points:g} points take {limit} labels, if labels do it at all: too far to say from this curve"
            )
        low, high = (limit if bound is None else str(bound) for bound in (self.low, self.high))
        return f"about {self.more} more labels for +{self.points:g} points, {INTERVAL:.0%} interval {low} to {high}"


def advise(measured: Sequence[tuple[int, float]], points: float = 2.0, seed: int = 0) -> Advice:
    """What a gain of some points costs, from where the curve ends.

    Args:
        measured: (labels, mIoU in percent), one for each seed.

    Raises:
        UserError: too few label counts for the law's three parameters, or no repetition to know its spread.
    """
    groups: dict[int, list[float]] = defaultdict(list)
    for labels, miou in measured:
        groups[labels].append(miou)
    counts = np.array(sorted(groups), dtype=float)
    if len(counts) < 3 or min(map(len, groups.values())) < 2 or counts[0] < 1:
        raise UserError(
            f"advice needs at least 3 numbers of labels with 2 seeds each, not {len(counts)} with "
            f"{min(map(len, groups.values()), default=0)}: measure more"
        )
    random = np.random.default_rng([seed, 0xAD])
    values = [np.array(groups[int(count)]) for count in counts]
    largest = int(counts[-1])
    needed = [
        _labels_for(counts, np.array([random.choice(group, len(group)).mean() for group in values]), points)
        for _ in range(RESAMPLES)
    ]
    best = _labels_for(counts, np.array([group.mean() for group in values]), points)
    low, high = np.quantile(needed, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="nearest")
    more, lower, upper = (
        None if labels > FURTHEST * largest else int(np.ceil(labels - largest)) for labels in (best, low, high)
    )
    return Advice(points, largest, more, lower, upper)


def fit_law(counts: np.ndarray, mious: np.ndarray) -> tuple[float, float, float]:
    """a, b and c of the law, by least squares; b = 0 for a curve that does not rise."""
    falling = counts ** -EXPONENTS[:, None]
    centred, rise = falling - falling.mean(1, keepdims=True), mious - mious.mean()
    slopes = -(centred @ rise) / np.square(centred).sum(1)
    errors = np.where(slopes > 0, np.square(slopes[:, None] * centred + rise).sum(1), np.inf)
    best = int(errors.argmin())
    b = max(0.0, float(slopes[best]))
    return float(mious.mean() + b * falling[best].mean()), b, float(EXPONENTS[best])


def _labels_for(counts: np.ndarray, mious: np.ndarray, points: float) -> float:
    """Labels at which the law is so many points above its value at the last count; infinite if it never is."""
    _, b, c = fit_law(counts, mious)
    gap = b * counts[-1] ** -c - points  # to the ceiling, when the points are gained
    return float((b / gap) ** (1 / c)) if gap > 0 else np.inf
