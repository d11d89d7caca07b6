"""How much each searched setting matters: PED-ANOVA over the trials of a sweep."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydelta.errors import UserError
from raydelta.results.sweep import Trial, key_of

ENOUGH = 20
"""Trials before anything is said about the importance of a knob: PED-ANOVA wants five in the best quarter."""

QUARTER = 0.25
RESAMPLES = 100
INTERVAL = 0.8


@dataclass(frozen=True)
class Importance:
    """Share of a knob in what tells the best quarter of the trials from the rest, with an interval over resamples."""

    knob: str
    share: float
    low: float
    high: float


def rank_knobs(trials: Sequence[Trial]) -> list[Importance]:
    """How much each searched knob matters for being in the best quarter, most important first.

    Optuna's PED-ANOVA (Watanabe et al. 2023) of the validation mIoU where each trial ended, bootstrapped over trials.

    Raises:
        UserError: too few trials to say, or nothing was searched.
    """
    scored = [trial for trial in trials if trial.miou is not None and math.isfinite(trial.miou)]
    knobs = [knob for knob in varied_knobs(trials) if all(knob in trial.overrides for trial in scored)]
    if not knobs:
        raise UserError("no knob was given more than one value")
    if len(scored) < ENOUGH:
        raise UserError(f"{len(scored)} trials with a validation mIoU are too few to say, it takes {ENOUGH}")
    distributions = {knob: _distribution([trial.overrides[knob] for trial in scored]) for knob in knobs}
    random = np.random.default_rng(0)
    best = _shares(scored, distributions)
    resampled = [
        _shares([scored[index] for index in random.integers(len(scored), size=len(scored))], distributions)
        for _ in range(RESAMPLES)
    ]
    ranked = []
    for knob in sorted(knobs, key=lambda knob: -best[knob]):
        low, high = np.quantile([shares[knob] for shares in resampled], [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        ranked.append(Importance(knob, best[knob], float(low), float(high)))
    return ranked


def varied_knobs(trials: Sequence[Trial]) -> list[str]:
    """The fields that trials differ in."""
    names = dict.fromkeys(name for trial in trials for name in trial.overrides)
    return [name for name in names if len({key_of({"": trial.overrides.get(name)}) for trial in trials}) > 1]


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether values lie on a scale: numbers, and not all the same."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(set(values)) > 1


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether a scale for such values had better be logarithmic."""
    return min(values) > 0 and max(values) / min(values) >= 10


def _distribution(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not is_numeric(values):
        return CategoricalDistribution(sorted({json.dumps(value) for value in values}))
    return FloatDistribution(min(values), max(values), log=is_logarithmic(values))


def _shares(trials: Sequence[Trial], distributions: Mapping[str, Any]) -> dict[str, float]:
    import optuna
    from optuna.distributions import CategoricalDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        values = {
            knob: json.dumps(trial.overrides[knob])
            if isinstance(distribution, CategoricalDistribution)
            else trial.overrides[knob]
            for knob, distribution in distributions.items()
        }
        study.add_trial(optuna.create_trial(params=values, distributions=dict(distributions), value=trial.miou))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=QUARTER)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
