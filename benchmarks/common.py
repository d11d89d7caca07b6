"""What the benchmarks share: the machine in words, a table, a JSON file."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raydelta.compute.device import has_bf16_units

FULL = ["data.width=256", "data.height=128", "generator.width=64", "generator.blocks=9"]
"""The original CycleGAN's generator and our largest usual images."""


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a ratio depends on besides the code."""
    device = device or torch.device("cpu")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_units": has_bf16_units(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in each of so many rounds, in which all come in turn; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows in columns; floats with three digits, None as a dash."""
    for row in [titles, *rows]:
        cells = ["–" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        print("  ".join(f"{cell:<24}" if index == 0 else f"{cell:>12}" for index, cell in enumerate(cells)))


def write_json(path: str | None, content: dict[str, Any]) -> None:
    """Write the result where it was asked for, without the paths of this machine among its options."""
    if path:
        options = {
            key: value for key, value in content.get("options", {}).items() if key not in ("json", "data", "runs")
        }
        Path(path).write_text(json.dumps(content | {"options": options}, indent=1) + "\n")


def family_of(leader: int) -> set[int]:
    """The leader and every process that descends from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended while we looked
    family = {leader}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def memory_of_session(leader: int) -> float:
    """Bytes (PSS) of every process that descends from the leader."""
    size = 0
    for pid in family_of(leader):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            size += 1024 * int(rollup.split("\nPss:")[1].split()[0])
        except (OSError, IndexError):
            continue  # it ended while we looked
    return float(size)
