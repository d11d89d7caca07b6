"""What a sweep leaves in its directory, read and written.

tune-SPACE-DATA-MMDD-xxxxxx/     (of older versions: tune-SPACE-xxxxxxxxxx)
  run.json       what was asked for: command, space, config (written before anything is trained)
  sweep/ID/      Ray Tune's: params.json, result.json with a line for each report, error.txt
  trials.json    the trials' results, when the sweep has ended
  best.yaml      the best trial's config, table.json and what else the main job ends with
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

from raydelta.config import Config
from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.search_space import Space
from raydelta.storage.bucket import fetch
from raydelta.storage.files import fingerprint, read_text, write_atomically
from raydelta.training.curve import read_curve
from raydelta.training.stage import Beside
from raydelta.version import __version__

RUN, TRIALS, FORMAT = "run.json", "trials.json", 1


class Sweep(BaseModel):
    """What a sweep was asked for."""

    format: int = FORMAT
    raydelta: str = __version__
    command: str
    space: Space
    config: Config  # before a trial's fields are set; data sets as they lie on disk
    expert: Beside  # its directory, beside the sweep's


def _plain(overrides: dict[str, Any]) -> dict[str, Any]:
    """Config fields as a space gives them: texts, booleans and numbers that fit a float, or lists of them."""
    for value in overrides.values():
        for each in value if isinstance(value, list) else [value]:
            number = isinstance(each, int | float) and not isinstance(each, bool)
            if not (each is None or isinstance(each, str | bool) or (number and abs(each) < 1e100)):
                raise ValueError(f"{each!r}: no value of a setting")
    return overrides


Step = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Overrides = Annotated[dict[str, Any], AfterValidator(_plain)]


@dataclass(frozen=True)
class Trial:
    """One trial; the curve is empty if Ray Tune's files of it are gone."""

    overrides: Overrides
    miou: float | None  # validation, percent, where it ended
    step: Step
    device_seconds: Seconds
    error: str | None
    ended: bool
    stopped_early: bool
    curve: list[dict[str, Any]] = field(default_factory=list)
    stage: Beside | None = None  # directory of its training, beside the sweep's; None: it failed, or an older sweep

    @property
    def state(self) -> str:
        """A word for where it stands."""
        if self.error is not None:
            return "failed"
        if not self.ended:
            return "unfinished"
        return "stopped early" if self.stopped_early else "finished"


_TRIAL, _OVERRIDES = TypeAdapter(Trial), TypeAdapter(Overrides)


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
        tree = read_json_file(path)
        newer = tree["format"] > FORMAT
        sweep = None if newer else Sweep(**tree)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
        raise UserError(f"{path}: damaged, run the same raydelta tune again to renew it: {error}") from error
    if newer:
        raise UserError(f"{path}: of a newer raydelta ({tree.get('raydelta')}); install that one to read it")
    return sweep


def sweep_directory(runs: Path, name: str, data: str, sweep: Sweep) -> Path:
    """Where a sweep lies in a folder of runs: where the same one was begun before, else under a new name.

    Args:
        name: of the space.
        data: name of the real data set.
    """
    earlier = [path.parent for path in runs.glob(f"tune-*/{RUN}")]
    for directory in sorted(earlier, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(UserError):  # a damaged one is found by its name
            found = read_sweep(directory)
            if found is not None and (found.space, found.config) == (sweep.space, sweep.config):
                return directory
    digest = fingerprint([sweep.space.model_dump(), sweep.config.model_dump(mode="json", exclude={"tracking"})])
    named = [*runs.glob(f"tune-*-{digest[:6]}/"), *runs.glob(f"tune-*-{digest}/")]
    stem = "-".join([re.sub(r"[^A-Za-z0-9_]+", "-", part).strip("-").lower() for part in (name, data)])
    return next(iter(named), runs / f"tune-{stem}-{datetime.now():%m%d}-{digest[:6]}")


def read_trials(directory: Path) -> list[Trial]:
    """The trials of a sweep, ended or not, in the order in which they began.

    Raises:
        UserError: ``trials.json`` is damaged.
    """
    if not (directory / TRIALS).exists():
        fetch(directory / "sweep")  # it goes on
    folders = {key_of(read): folder for folder in sorted((directory / "sweep").glob("*/")) if (read := _asked(folder))}
    path = directory / TRIALS
    if not path.exists():
        return [_from_folder(folder) for folder in folders.values()]
    try:
        results = read_json_file(path)
        return [_from_result(result, folders.get(key_of(result["overrides"]))) for result in results]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, run the same raydelta tune again to renew it: {error}") from error


def write_trials(directory: Path, trials: Sequence[Trial]) -> None:
    """Write ``trials.json``: the search has ended."""
    kept = ("overrides", "miou", "step", "device_seconds", "stopped_early", "error", "stage")
    results = [{name: getattr(trial, name) for name in kept} for trial in trials]
    write_atomically(directory / TRIALS, json.dumps(results, indent=1))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The best on the validation labels; None: no trial has an mIoU.

    One that was stopped early has lost to others at the same step, whatever those score at their end.
    """
    scored = [trial for trial in trials if trial.miou is not None]
    return max(scored, key=lambda trial: (not trial.stopped_early, trial.miou or 0.0), default=None)


def key_of(overrides: Mapping[str, Any]) -> str:
    return json.dumps(overrides, sort_keys=True)


def _asked(folder: Path) -> dict[str, Any] | None:
    try:
        return _OVERRIDES.validate_python(read_json_file(folder / "params.json")["overrides"])
    except (OSError, ValueError, KeyError, TypeError):  # a trial that has only just been made
        return None


def _from_result(result: Mapping[str, Any], folder: Path | None) -> Trial:
    curve = read_curve(folder / "result.json") if folder else []
    return _TRIAL.validate_python({"device_seconds": 0.0, **result, "ended": True, "curve": curve})


def _from_folder(folder: Path) -> Trial:
    curve = read_curve(folder / "result.json")
    last: dict[str, Any] = curve[-1] if curve else {}
    complaint, error = folder / "error.txt", None
    whole = bool(curve) and last["step"] == last.get("steps")
    ended = whole or last.get("done") is True  # Ray Tune's word for a trial that its scheduler has stopped
    if complaint.exists() and not ended:
        error = (read_text(complaint).strip().splitlines() or ["unknown"])[-1]
    return Trial(
        overrides=_asked(folder) or {},
        miou=last.get("miou"),
        step=last.get("step", 0),
        device_seconds=last.get("device_seconds") or 0.0,
        error=error,
        ended=ended,
        stopped_early=ended and not whole,
        curve=curve,
    )
