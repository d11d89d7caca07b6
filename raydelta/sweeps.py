"""What a sweep leaves in its directory, and what its trials say about the knobs that were searched.

    tune-NAME-xxxx/
      run.json       what was asked for: command, space, config (written before anything is trained)
      sweep/ID/      Ray Tune's: params.json, result.json with a line for each report, error.txt
      trials.json    the trials' results, when the sweep has ended
      best.yaml      the best trial's config, table.json and what else the main job ends with

Not here: how a sweep is run (tuning), and what the reports of a training hold (training).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

import raydelta
from raydelta.config import Config
from raydelta.curves import read_curve
from raydelta.errors import UserError
from raydelta.spaces import Space
from raydelta.stages import write_atomically

RUN, FORMAT = "run.json", 1

ENOUGH = 20
"""Trials before anything is said about the importance of a knob: PED-ANOVA wants five in the best quarter."""

QUARTER = 0.25
RESAMPLES = 100
INTERVAL = 0.8


class Sweep(BaseModel):
    """What a sweep was asked for."""

    format: int = FORMAT
    raydelta: str = raydelta.__version__
    command: str
    space: Space
    config: Config  # before a trial's fields are set; data sets as they lie on disk
    expert: str  # its directory, beside the sweep's


@dataclass(frozen=True)
class Trial:
    """One trial; the curve is empty if Ray Tune's files of it are gone."""

    overrides: dict[str, Any]
    miou: float | None  # validation, percent, where it ended
    step: int
    device_seconds: float
    error: str | None
    ended: bool
    stopped_early: bool
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """A word for where it stands."""
        if self.error is not None:
            return "failed"
        if not self.ended:
            return "unfinished"
        return "stopped early" if self.stopped_early else "finished"


def record_sweep(directory: Path, sweep: Sweep) -> None:
    """Write ``run.json``."""
    write_atomically(directory / RUN, sweep.model_dump_json(indent=1))


def read_sweep(directory: Path) -> Sweep | None:
    """What a sweep was asked for; None for one of an older version, which did not write it down.

    Raises:
        UserError: the file is damaged, or of a newer version.
    """
    path = directory / RUN
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text())
        newer = tree["format"] > FORMAT
        sweep = None if newer else Sweep(**tree)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        raise UserError(f"{path}: damaged, run the same raydelta tune again to renew it: {error}") from error
    if newer:
        raise UserError(f"{path}: of a newer raydelta ({tree.get('raydelta')}); install that one to read it")
    return sweep


def read_trials(directory: Path) -> list[Trial]:
    """The trials of a sweep, ended or not, in the order in which they began.

    Raises:
        UserError: ``trials.json`` is damaged.
    """
    folders = {_key(read): folder for folder in sorted((directory / "sweep").glob("*/")) if (read := _asked(folder))}
    path = directory / "trials.json"
    if not path.exists():
        return [_from_folder(folder) for folder in folders.values()]
    try:
        results = json.loads(path.read_text())
        return [_from_result(result, folders.get(_key(result["overrides"]))) for result in results]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, run the same raydelta tune again to renew it: {error}") from error


def _key(overrides: Mapping[str, Any]) -> str:
    return json.dumps(overrides, sort_keys=True)


def _asked(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "params.json").read_text())["overrides"]
    except (OSError, ValueError, KeyError, TypeError):  # a trial that has only just been made
        return None


def _from_result(result: Mapping[str, Any], folder: Path | None) -> Trial:
    return Trial(
        overrides=result["overrides"],
        miou=result["miou"],
        step=result["step"],
        device_seconds=result.get("device_seconds", 0.0),
        error=result["error"],
        ended=True,
        stopped_early=result["stopped_early"],
        curve=read_curve(folder / "result.json") if folder else [],
    )


def _from_folder(folder: Path) -> Trial:
    curve = read_curve(folder / "result.json")
    last: dict[str, Any] = curve[-1] if curve else {}
    complaint, error = folder / "error.txt", None
    whole = bool(curve) and last["step"] == last["steps"]
    ended = whole or last.get("done", False)  # Ray Tune's word for a trial that its scheduler has stopped
    if complaint.exists() and not ended:
        error = (complaint.read_text(errors="replace").strip().splitlines() or ["unknown"])[-1]
    return Trial(
        overrides=_asked(folder) or {},
        miou=last.get("miou"),
        step=last.get("step", 0),
        device_seconds=last.get("device_seconds", 0.0),
        error=error,
        ended=ended,
        stopped_early=ended and not whole,
        curve=curve,
    )


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
    return [name for name in names if len({_key({"": trial.overrides.get(name)}) for trial in trials}) > 1]


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
