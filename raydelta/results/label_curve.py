"""mIoU over the number of labels: what a strategy saves, and how many more labels some points of mIoU would take.

    mIoU(n) = a - b · n^(-c)     b ≥ 0, c > 0

is the power law that errors follow over the amount of training data (Hestness et al. 2017). It is fitted to a measured
curve, bootstrapped over the seeds, and never read further than twice the largest measured number of labels.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from statistics import mean, stdev

import numpy as np

from raydelta.errors import UserError
from raydelta.recipes import MethodName
from raydelta.results.row import Row
from raydelta.search_space import ReplayConfig

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


Curve = dict[int, float]
"""Labels to train on → mIoU in percent."""


def sum_up(settings: ReplayConfig, methods: Sequence[MethodName], rows: Sequence[Row]) -> list[str]:
    """What each strategy needs for the mIoU that random choice ends with, and what more labels of it would bring."""
    split = next((row.split for row in rows if row.domain == "real"), None)
    findings = []
    for method in methods:
        curves = {name: curves_of(rows, f"{method}, {name}", split) for name in settings.strategies}
        for name, by_seed in curves.items():
            if name != "random" and "random" in curves:
                parts = [format_area(by_seed, curves["random"])]
                prices = [prices_of(rows, f"{method}, {each}", split) for each in (name, "random")]
                if all(prices):
                    parts.append(format_clicks(*prices))
                findings.append(f"{method}, {name}: {'; '.join([*parts, format_saving(by_seed, curves['random'])])}")
            if len(settings.budgets) > 2 and len(by_seed) > 1:
                measured = [point for curve in by_seed.values() for point in curve.items()]
                findings.append(f"{method}, {name}: {advise(measured)}")
    return findings


def curves_of(rows: Sequence[Row], method: str, split: str | None) -> dict[int, Curve]:
    """Seed → the curve of a method."""
    curves: dict[int, Curve] = defaultdict(dict)
    for row in rows:
        if (row.method, row.domain, row.split) == (method, "real", split):
            curves[row.seed][row.labels_train] = row.miou
    return curves


def prices_of(rows: Sequence[Row], method: str, split: str | None) -> dict[int, Curve]:
    """Seed → clicks and mIoU of a method; empty where an older table does not know its clicks."""
    curves: dict[int, Curve] = defaultdict(dict)
    for row in rows:
        if (row.method, row.domain, row.split) == (method, "real", split):
            if row.clicks is None:
                return {}
            curves[row.seed][row.clicks] = row.miou
    return curves


def area(curve: Curve) -> float:
    """The mean mIoU of a curve over the logarithm of its labels: the area below it ÷ its width."""
    counts = sorted(curve)
    widths = [log2(after) - log2(before) for before, after in pairwise(counts)]
    heights = [(curve[before] + curve[after]) / 2 for before, after in pairwise(counts)]
    return sum(w * h for w, h in zip(widths, heights, strict=True)) / sum(widths) if widths else curve[counts[0]]


def format_area(by_seed: dict[int, Curve], random: dict[int, Curve]) -> str:
    """``+0.8 ± 0.5 points over log2 labels (paired, 3 seeds)``: difference in area under the curve to random choice."""
    differences = [area(curve) - area(random[seed]) for seed, curve in sorted(by_seed.items())]
    deviation = f" ± {stdev(differences):.1f}" if len(differences) > 1 else ""
    seeds = f"{len(differences)} seed{'s' * (len(differences) > 1)}"
    gain = round(mean(differences), 1) + 0.0  # no -0.0
    return f"{gain:+.1f}{deviation} points over log2 labels (paired, {seeds})"


def format_clicks(by_seed: dict[int, Curve], random: dict[int, Curve]) -> str:
    """``0.6, 0.9 of random's clicks``: by seed, what it takes for the mIoU that random choice ends with."""
    shares = []
    for seed, curve in sorted(by_seed.items()):
        last = max(random[seed])
        needed = labels_for(curve, random[seed][last])
        shares.append(f"more than {max(curve) / last:.2f}" if needed is None else f"{needed / last:.2f}")
    return f"{', '.join(shares)} of random's clicks"


def format_saving(by_seed: dict[int, Curve], random: dict[int, Curve]) -> str:
    """``reaches random's 31.2 % with 34 of 64 labels (by seed 28, 40, more than 64)``."""
    together, reference = average(by_seed), average(random)
    last = max(reference)
    needed = [labels_for(curve, random[seed][last]) for seed, curve in sorted(by_seed.items())]
    spread = ", ".join(f"more than {last}" if labels is None else f"{labels:.0f}" for labels in needed)
    labels = labels_for(together, reference[last])
    reached = f"does not reach random's {reference[last]:.1f} % with {last} labels"
    if labels is not None:
        reached = f"reaches random's {reference[last]:.1f} % with {labels:.0f} of {last} labels"
    return f"{reached} (by seed {spread})"


def average(by_seed: dict[int, Curve]) -> Curve:
    """The mean curve of several seeds."""
    return {
        labels: mean(curve[labels] for curve in by_seed.values()) for labels in sorted(next(iter(by_seed.values())))
    }


def labels_for(curve: Curve, miou: float) -> float | None:
    """Labels at which a curve first reaches an mIoU, read between its points on a logarithmic scale; None: nowhere."""
    counts = sorted(curve)
    if curve[counts[0]] >= miou:
        return counts[0]
    for before, after in pairwise(counts):
        if curve[after] >= miou:
            share = (miou - curve[before]) / (curve[after] - curve[before])
            return 2 ** (log2(before) + share * (log2(after) - log2(before)))
    return None
