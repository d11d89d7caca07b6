"""The curve of a training: what it reported on its way, one JSON object a line, kept beside what it became.

A training that was killed goes on from a checkpoint and reports some steps again; the later line counts. Ray Tune
writes its trials in the same shape, so they are read here too.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = "curve.jsonl"


def append_report(path: Path, report: Mapping[str, Any]) -> None:
    """One more line in a folder that is there; if it is away, that costs a point of the curve, not the training."""
    with contextlib.suppress(OSError), path.open("a") as file:
        file.write(json.dumps(report) + "\n")


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The reports in the order of their steps, each once, broken lines left out; empty if there is no such file."""
    curve: list[dict[str, Any]] = []
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


def format_curve(curve: Sequence[Mapping[str, Any]]) -> str:
    """The text of a curve's file."""
    return "".join(json.dumps(report) + "\n" for report in curve)
