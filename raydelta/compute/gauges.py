"""Figures of trainings and sweeps among Ray's own metrics, for Prometheus and clusters/grafana.json.

A process that Ray runs sets them; they go when it ends. The training loop knows nothing of this: the adapters call it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

TRAINING = {
    "step": ("raydelta_step", "Steps done"),
    "step_seconds": ("raydelta_step_seconds", "Seconds for one step, data wait included"),
    "data_wait": ("raydelta_data_wait_ratio", "Share of the time that a training waits for data"),
    "images_per_second": ("raydelta_images_per_second", "Images of all workers"),
    "miou": ("raydelta_validation_miou_percent", "mIoU on the validation labels"),
}
"""Key of a report → name and description of a gauge with the tags kind (expert, translator, …) and run."""

STATES = ("PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR")
"""Of trials, as Ray Tune calls them."""


def record_training(kind: str, run: str, report: Mapping[str, Any]) -> None:
    """Set the gauges of a training from what it reports. Only in a process of Ray, and on rank 0."""
    for key, (name, description) in TRAINING.items():
        if key in report:
            _gauge(name, description, ("kind", "run")).set(report[key], tags={"kind": kind, "run": run})


def record_trials(sweep: str, states: Iterable[str]) -> None:
    """Set how many trials of a sweep are in each state."""
    counts = Counter(states)
    for state in STATES:
        gauge = _gauge("raydelta_trials", "Trials of a sweep by state", ("sweep", "state"))
        gauge.set(counts[state], tags={"sweep": sweep, "state": state})


@cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description=description, tag_keys=tags)
