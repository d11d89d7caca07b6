"""The curve of a training: what it reported on its way, one JSON object a line, kept beside what it became.

A training that was killed goes on from a checkpoint and reports some steps again; the later line counts. Ray Tune
writes its trials in the same shape, so they are read here too.
"""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = "curve.jsonl"

Metrics = dict[str, Any]
"""One report of a training: step, steps, losses (name → mean since the last report), miou, device_seconds, pace."""


def append_report(path: Path, report: Mapping[str, Any]) -> None:
    """One more line in a folder that is there; if it is away, that costs a point of the curve, not the training."""
    with contextlib.suppress(OSError), path.open("a") as file:
        file.write(json.dumps(report) + "\n")


def read_curve(path: Path) -> list[Metrics]:
    """The reports in the order of their steps, each once, broken lines left out; empty if there is no such file."""
    curve: list[Metrics] = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return curve
    for line in lines:
        with contextlib.suppress(ValueError):
            report = json.loads(line)
            if isinstance(report, dict) and isinstance(report.get("step"), int):
                while curve and curve[-1]["step"] >= report["step"]:
                    curve.pop()
                curve.append(report)
    return curve


def losses_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The loss terms of a report, also of an older version, which wrote them after ``steps`` and before the rest."""
    if "losses" in report:
        return report["losses"]
    own = itertools.takewhile(lambda item: item[0] not in ("miou", "device_seconds"), report.items())
    return {name: value for name, value in own if name not in ("step", "steps")}


def format_curve(curve: Sequence[Mapping[str, Any]]) -> str:
    """The text of a curve's file."""
    return "".join(json.dumps(report) + "\n" for report in curve)
