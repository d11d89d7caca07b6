"""The curve of a training: what it reported on its way, one JSON object a line, kept beside what it became.

A training that was killed goes on from a checkpoint and reports some steps again; the later line counts. Ray Tune
writes its trials in the same shape, so they are read here too.
"""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from raydelta.parsing import MAX_BYTES, parse_json
from raydelta.storage.files import read_bytes

CURVE = "curve.jsonl"

Metrics = dict[str, Any]
"""One report of a training: step, steps, losses (name → mean since the last report), miou, device_seconds, pace."""


def append_report(path: Path, report: Mapping[str, Any]) -> None:
    """One more line in a folder that is there; if it is away, that costs a point of the curve, not the training."""
    with contextlib.suppress(OSError), path.open("a") as file:
        file.write(json.dumps(report) + "\n")


def is_report(value: object) -> TypeGuard[Metrics]:
    """Whether it can be a report: what is known of it are numbers, and its losses too. It need not be whole."""
    return isinstance(value, dict) and all(map(_fits, value.keys(), value.values()))


def _fits(name: str, value: object) -> bool:
    if name in ("step", "steps"):
        return is_number(value) and isinstance(value, int)
    if name == "losses":
        return isinstance(value, dict) and all(map(is_number, value.values()))
    if name.startswith("seconds_"):
        return is_number(value)
    return name not in ("miou", "device_seconds") or value is None or is_number(value)


def is_number(value: object) -> bool:
    """Whether it is one that fits into 64 bits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def read_curve(path: Path) -> list[Metrics]:
    """The reports in the order of their steps, each once, broken lines left out; empty if there is no such file.

    Raises:
        UserError: a pipe or device, or too large.
    """
    curve: list[Metrics] = []
    try:
        lines = read_bytes(str(path), MAX_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return curve
    for line in lines:
        with contextlib.suppress(ValueError):
            report = parse_json(line)
            if is_report(report) and "step" in report:
                while curve and curve[-1]["step"] >= report["step"]:
                    curve.pop()
                curve.append(report)
    return curve


def losses_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The loss terms of a report, also of an older version, which wrote them after ``steps`` and before the rest."""
    if "losses" in report:
        return report["losses"]
    own = itertools.takewhile(lambda item: item[0] not in ("miou", "device_seconds"), report.items())
    return {name: value for name, value in own if name not in ("step", "steps") and is_number(value)}


def format_curve(curve: Sequence[Mapping[str, Any]]) -> str:
    """The text of a curve's file."""
    return "".join(json.dumps(report) + "\n" for report in curve)
