"""What lies in an output directory: found by name, listed, compared, and cleared of what nobody needs."""

import contextlib
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from pydantic import BaseModel

from raydelta.errors import UserError
from raydelta.parsing import flatten, read_json_file, read_yaml
from raydelta.results.row import Row
from raydelta.results.sweep import RUN, read_sweep, read_trials
from raydelta.results.table import read_table, summarise
from raydelta.storage.bucket import fetch, names_in, open_run, open_runs, remove, size_of
from raydelta.storage.files import address_of, is_remote, shown
from raydelta.storage.locks import is_locked
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.stage import STAGE, Stage, is_beside, read_stage

LATEST = "latest"
BEST, METHODS = "best.yaml", "methods.json"  # of training.job, which would load torch
UNFINISHED = "unfinished"

State = Literal["finished", "running", "unfinished"]


class RunInfo(BaseModel):
    """One sweep or training in an output directory."""

    name: str
    kind: str  # sweep, expert, translator, student, …
    state: State
    changed: datetime
    data: str  # name of the photographs; of an expert, of the synthetic images
    best: str | None = None  # the best row of its table; None: no table
    miou: float | None = None  # percent: of the best row on the test labels, of a training on its validation labels
    progress: str = ""  # of what is unfinished
    part_of: str | None = None  # the sweep that trained it


class Comparison(BaseModel):
    """What two runs differ in; None where a run has no such field or row."""

    settings: dict[str, tuple[Any, Any]]  # dotted config fields that differ
    rows: dict[str, tuple[float | None, float | None]]  # of the test tables: mean mIoU in percent


class Leftover(BaseModel):
    """Something that can be removed without training anything again that has finished."""

    path: Path
    bytes: int
    why: str


def resolve_run(name: str | Path, runs: str | Path = "runs") -> Path:
    """The directory of a run: a path or address, a name in the output directory (``tune-`` may be left out), or
    ``latest``. Of a run in a bucket it is the local copy.

    ``latest`` is the sweep, or the training by itself, that finished last.

    Raises:
        UserError: there is no such run; the message names those that are like it.
    """
    if is_remote(name):
        found = open_run(str(name))
        if not found.exists():
            raise UserError(
                f"{name}: no such run; raydelta runs --runs {str(name).rpartition('/')[0]} lists what there is"
            )
        return found
    path = Path(name).expanduser()
    if len(path.parts) > 1 and path.exists():
        return path
    runs = open_runs(runs)
    if str(name) == LATEST and not path.exists():
        finished = [run.name for run in list_runs(runs) if run.state == "finished" and run.part_of is None]
        if not finished:
            raise UserError(f"{shown(runs)}: no finished sweep or training there; name a run, or the right --runs")
        path = runs / finished[0]
    for candidate in (path, runs / path, runs / f"tune-{name}", runs / UNFINISHED / path):
        if candidate.exists():
            fetch(candidate, light=True)
            return candidate
    if len(path.parts) > 1:
        raise UserError(f"{path}: no such run")
    known = [each.name.removeprefix("tune-") for each in _sweeps(runs)] + [each.name for each in _stages(runs)]
    near = difflib.get_close_matches(str(name).removeprefix("tune-"), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "raydelta runs lists what there is"
    raise UserError(f"{name}: no such run, neither here nor in {shown(runs)}; {hint}")


def list_runs(runs: str | Path = "runs") -> list[RunInfo]:
    """Everything in an output directory, the newest first; trainings name the sweep that trained them."""
    runs = open_runs(runs)
    sweeps = {directory.name: _describe_sweep(directory) for directory in _sweeps(runs)}
    owners = {part: name for name in sweeps for part in _parts(runs / name)}
    trainings = [_describe_stage(directory) for directory in _stages(runs)]
    done = {training.name for training in trainings}
    trainings += [_describe_unfinished(each) for each in _unfinished(runs) if each.name not in done]
    known = [training.model_copy(update={"part_of": owners.get(training.name)}) for training in trainings]
    return sorted([*sweeps.values(), *known], key=lambda run: run.changed, reverse=True)


def compare_runs(first: Path, second: Path) -> Comparison:
    """What two runs differ in: settings and results.

    Raises:
        UserError: one of them is no run, or its files are damaged.
    """
    fields, figures = zip(*((_settings(run), _figures(run)) for run in (first, second)), strict=True)
    sweeps = all((run / RUN).exists() for run in (first, second))  # a training has no space to compare
    named = [key for key in _keys(fields) if sweeps or not key.startswith("space.")]
    settings = {key: (fields[0].get(key), fields[1].get(key)) for key in named}
    rows = {key: (figures[0].get(key), figures[1].get(key)) for key in _keys(figures)}
    return Comparison(settings={key: pair for key, pair in settings.items() if pair[0] != pair[1]}, rows=rows)


def find_leftovers(runs: str | Path = "runs") -> list[Leftover]:
    """What ``prune`` may remove: unfinished trainings, and what only an unfinished training needs of a checkpoint.

    What a command works on right now is left out, and so is every finished stage: others build on it.
    """
    runs, found = open_runs(runs), []
    if _is_busy(runs):
        return []
    why = "unfinished, or ended early by a sweep; it would start again from its first step"
    found += [(runs / UNFINISHED / name, why) for name in names_in(runs / UNFINISHED)]
    for hidden in sorted([*runs.glob(".*"), *runs.glob("data/.*")]):
        if re.search(r"\.([0-9a-f]{8}|old|\d+)$", hidden.name):
            found.append((hidden, "a copy that was interrupted"))
    for partial in sorted(runs.glob("data/*.partial")):
        found.append((partial, "a data set that was interrupted"))
    for stage in _stages(runs):
        for file in sorted([*stage.glob("checkpoint/state.pt"), *stage.glob("checkpoint/rank-*.pt")]):
            found.append((file, "optimisers of a training that has finished"))
    return [Leftover(path=path, bytes=size_of(path), why=why) for path, why in found]


def prune(leftovers: Iterable[Leftover]) -> int:
    """Remove them; how many bytes that freed."""
    freed = 0
    for leftover in leftovers:
        with contextlib.suppress(FileNotFoundError):
            remove(leftover.path)
            freed += leftover.bytes
    return freed


def as_json(runs: Sequence[RunInfo]) -> str:
    """The runs as a JSON list."""
    return json.dumps([run.model_dump(mode="json") for run in runs], indent=1)


def format_runs(runs: Sequence[RunInfo], now: datetime | None = None) -> str:
    """One line for each run."""
    if not runs:
        return "no run there; start with raydelta tune"
    rows = [("name", "kind", "state", "age", "data", "mIoU %", "best row")]
    for run in runs:
        state = f"{run.state}, {run.progress}" if run.progress else run.state
        miou = "" if run.miou is None else f"{run.miou:.1f}"
        age = _age(run.changed, now or datetime.now())
        rows.append((run.name, run.kind, state, age, run.data, miou, run.best or ("validation" if miou else "")))
    return _columns(rows)


def format_comparison(comparison: Comparison, names: Sequence[str]) -> str:
    """The settings that differ, then the rows with the difference in points."""
    rows = [("setting", *names)]
    rows += [
        (key, *("–" if value is None else str(value) for value in pair)) for key, pair in comparison.settings.items()
    ]
    lines = [_columns(rows) if len(rows) > 1 else "the settings are the same"]
    results = [("mIoU %", *names, "difference")]
    for key, (first, second) in comparison.rows.items():
        difference = "" if first is None or second is None else f"{second - first:+.1f}"
        results.append((key, *("–" if value is None else f"{value:.1f}" for value in (first, second)), difference))
    lines.append(_columns(results) if len(results) > 1 else "neither has a test table; raydelta evaluate makes one")
    return "\n\n".join(lines)


def format_leftovers(leftovers: Sequence[Leftover]) -> str:
    """One line for each, and their sum."""
    if not leftovers:
        return "nothing to remove, or a command works there"
    rows = [(f"{each.bytes / 2**20:.1f} MiB", shown(each.path), each.why) for each in leftovers]
    return f"{_columns(rows)}\n{sum(each.bytes for each in leftovers) / 2**20:.0f} MiB"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _age(then: datetime, now: datetime) -> str:
    minutes = max(0, int((now - then).total_seconds() // 60))
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} d"


def _sweeps(runs: Path) -> list[Path]:
    return sorted({path.parent for name in (RUN, BEST) for path in runs.glob(f"*/{name}")})


def _stages(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob(f"*/{STAGE}"))


def _unfinished(runs: Path) -> list[Path]:
    return [path for path in sorted((runs / UNFINISHED).glob("*/")) if not path.name.startswith("jobs-")]


def _is_busy(runs: Path) -> bool:
    """Whether a command works in the directory right now."""
    if address_of(runs) is not None:
        searches = [sweep / "sweep" for sweep in _sweeps(runs) if not (sweep / BEST).exists()]
        trainings = [runs / name for name in names_in(runs / UNFINISHED)]
        return any(map(is_locked, [*searches, *trainings, *(runs / UNFINISHED / path.name for path in trainings)]))
    locks = [*runs.glob(".*.lock"), *runs.glob("*/.*.lock")]
    return any(is_locked(lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))) for lock in locks)


def _describe_sweep(directory: Path) -> RunInfo:
    sweep, best = None, None
    with contextlib.suppress(UserError):  # a damaged one is listed too
        sweep = read_sweep(directory)
    figures = _figures(directory)
    finished = (directory / BEST).exists()  # written after the table
    if figures:
        best = max((name for name in figures if not name.startswith("oracle")), key=lambda name: figures[name])
    progress = ""
    if not finished:
        with contextlib.suppress(UserError):
            ended = [trial.state != "unfinished" for trial in read_trials(directory)]
            progress = f"{sum(ended)} of {len(ended)} trials"
    return RunInfo(
        name=directory.name,
        kind="sweep",
        state="finished" if finished else "running" if _is_busy(directory.parent) else "unfinished",
        changed=_changed(directory),
        data=_data_name(sweep.config.data.real) if sweep else "",
        best=best,
        miou=figures[best] if best else None,
        progress=progress,
    )


def _describe_stage(directory: Path) -> RunInfo:
    stage = _read_stage(directory)
    kind = stage.get("kind", "training")
    figures = _figures(directory)
    return RunInfo(
        name=directory.name,
        kind=kind,
        state="finished",
        changed=datetime.fromtimestamp((directory / STAGE).stat().st_mtime),
        data=_data_of(directory / "checkpoint", kind),
        best=next(iter(figures), None),
        miou=next(iter(figures.values()), (stage.get("metrics") or {}).get("miou")),
    )


def _describe_unfinished(directory: Path) -> RunInfo:
    curve = read_curve(directory / CURVE)
    checkpoints = sorted(directory.glob("checkpoint-*"))
    kind = directory.name.rpartition("-")[0]
    return RunInfo(
        name=directory.name,
        kind=kind,
        state="running" if is_locked(directory.parents[1] / directory.name) else "unfinished",
        changed=_changed(directory),
        data=_data_of(checkpoints[-1], kind) if checkpoints else "",
        miou=curve[-1].get("miou") if curve else None,
        progress=f"{curve[-1]['step']} of {curve[-1].get('steps', '?')} steps" if curve else "",
    )


def _parts(directory: Path) -> set[str]:
    """The trainings that a sweep has made or used, and what those build on."""
    names: set[str] = set()
    with contextlib.suppress(UserError):
        sweep = read_sweep(directory)
        names |= {sweep.expert} if sweep else set()
        names |= {trial.stage for trial in read_trials(directory) if trial.stage}
    names |= {Path(row.stage).name for row in _rows(directory) if row.stage}
    for entry in _read_json(directory / METHODS).values():
        named = [entry.get("stage"), *(entry.get("members") or ())] if isinstance(entry, dict) else []
        names |= {name for name in named if is_beside(name)}
    waiting = list(names)
    while waiting:
        stage = _read_stage(directory.parent / waiting.pop())
        built_on = {stage.get("expert"), stage.get("translator"), stage.get("student"), *stage.get("members", ())}
        waiting += [name for name in built_on - names if name]
        names |= {name for name in built_on if name}
    return names


def _rows(directory: Path) -> list[Row]:
    try:
        return read_table(directory)
    except UserError:  # none yet, or a damaged one
        return []


def _figures(directory: Path) -> dict[str, float]:
    """Row of the test table → mean mIoU over its seeds, in percent; rows of several budgets name theirs."""
    rows = [row for row in _rows(directory) if row.domain == "real" and row.split in ("test", "val")]
    parts = summarise(rows)
    several = {part.method for part in parts if sum(other.method == part.method for other in parts) > 1}
    named = [
        (f"{part.method}, {part.labels_train} labels" if part.method in several else part.method) for part in parts
    ]
    return {name: round(mean(row.miou for row in part.of(rows)), 2) for name, part in zip(named, parts, strict=True)}


def _settings(run: Path) -> dict[str, Any]:
    sweep = read_sweep(run)
    if sweep is not None:
        tree = {"config": sweep.config.model_dump(mode="json"), "space": sweep.space.model_dump(mode="json")}
        flat = flatten(tree["config"]) | {f"space.{key}": value for key, value in flatten(tree["space"]).items()}
        best = run / BEST
        return flat | (flatten(read_yaml(best)) if best.exists() else {})
    checkpoint = run / "checkpoint" / "config.yaml"
    if not checkpoint.exists():
        raise UserError(f"{run}: neither a sweep nor a finished training")
    return flatten(read_yaml(checkpoint))


def _keys(mappings: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _data_of(checkpoint: Path, kind: str) -> str:
    try:
        address = read_yaml(checkpoint / "config.yaml")["data"]["synthetic" if kind == "expert" else "real"]
    except (UserError, KeyError, TypeError):
        return ""
    return _data_name(str(address))


def _data_name(address: str) -> str:
    """The last part of an address, without the digits that tell versions of a built-in or imported set apart."""
    return re.sub(r"-[0-9a-f]{10}$", "", address.partition("?")[0].rstrip("/").rpartition("/")[2])


def _read_stage(directory: Path) -> Stage:
    """Its manifest; empty if it is damaged or there is none."""
    with contextlib.suppress(UserError):
        return read_stage(directory) or {}
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = read_json_file(path)
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _changed(directory: Path) -> datetime:
    found = [directory, *directory.glob("*")]
    if address_of(directory) is not None:  # a folder of the copy is as old as the copy
        found = [path for path in found if path.is_file()] or found
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in found))
