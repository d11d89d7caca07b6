"""Differences between rows of the table, paired by seed: how sure they are, and how much of them one class carries."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean
from typing import NamedTuple

from raydelta.results.row import Row

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t for 1 to 9 degrees of freedom."""
NORMAL_975 = 1.960


def half_width_95(deviation: float, seeds: int) -> float:
    """Half of the 95 % interval of a mean over seeds (Student's t), in the unit of the deviation.

    Args:
        deviation: sample standard deviation over the seeds.
        seeds: at least 2.
    """
    quantile = T_975[seeds - 2] if seeds - 2 < len(T_975) else NORMAL_975
    return quantile * deviation / sqrt(seeds)


def format_difference(difference: float, deviation: float | None, seeds: int) -> str:
    """``+2.1 [-1.3, +5.5]``: points and their 95 % interval; one seed has none."""
    if deviation is None:
        return f"{difference:+.1f}"
    half = half_width_95(deviation, seeds)
    return f"{difference:+.1f} [{difference - half:+.1f}, {difference + half:+.1f}]"


class Lead(NamedTuple):
    """How far a row is ahead of another, in points of IoU, as means over the seeds that both have."""

    classes: dict[str, float]  # those that both have

    @property
    def whole(self) -> float:
        """The mean over the classes."""
        return mean(self.classes.values())

    @property
    def best(self) -> str:
        """The class with the largest lead."""
        return max(self.classes, key=lambda name: self.classes[name])

    @property
    def without_best(self) -> float:
        """The mean over the other classes."""
        return mean(points for name, points in self.classes.items() if name != self.best)


def lead_of(group: Sequence[Row], others: Sequence[Row]) -> Lead | None:
    """The lead of a line of the table over another one; None: no seed in common, or fewer than two classes."""
    by_seed = {row.seed: row for row in others}
    pairs = [(row.per_class, by_seed[row.seed].per_class) for row in group if row.seed in by_seed]
    points: dict[str, float] = {}
    for name in group[0].per_class:
        known = [(own[name], their[name]) for own, their in pairs]
        differences = [a - b for a, b in known if a is not None and b is not None]
        if differences:
            points[name] = mean(differences)
    return Lead(points) if len(points) > 1 else None
