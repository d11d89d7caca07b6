"""A sweep of any size as it lies on disk, without the training: what several test modules read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from raydelta.config import load_config
from raydelta.data.taxonomy import CAMVID11
from raydelta.results.row import Row
from raydelta.results.sweep import Sweep, record_sweep
from raydelta.results.table import write_table
from raydelta.search_space import Space
from raydelta.training.curve import format_curve
from raydelta.training.metrics import class_ious, mean_iou

SEARCH: dict[str, Any] = {
    "guidance.weight": {"uniform": [0.1, 0.9]},
    "cycle.real": {"loguniform": [1, 20]},
    "labels.budget": {"choice": [7, 14, 28]},
    "generator.identity_start": {"choice": [True, False]},
}
REPORTS = 40


def make_trial(number: int, steps: int = 2000) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Overrides and reports of a trial; the guidance weight decides, the label budget helps."""
    rng = np.random.default_rng([number, 5])
    overrides = {
        "guidance.weight": float(rng.uniform(0.1, 0.9)),
        "cycle.real": float(math.exp(rng.uniform(0, math.log(20)))),
        "labels.budget": int(rng.choice([7, 14, 28])),
        "generator.identity_start": bool(rng.random() < 0.5),
    }
    end = 34 - 40 * (overrides["guidance.weight"] - 0.6) ** 2 + {7: 0, 14: 2, 28: 3}[overrides["labels.budget"]]
    end += rng.normal() * 0.5
    reports = []
    for index in range(1, REPORTS // (2 if number % 3 == 0 else 1) + 1):
        share = index / REPORTS
        report: dict[str, Any] = {"step": int(steps * share), "steps": steps}
        terms = ("gan_r2s", "gan_s2r", "cycle_real", "cycle_synthetic", "guidance", "dice")
        report["losses"] = {term: float(math.exp(-2 * share) * rng.uniform(0.9, 1.1)) for term in terms}
        report |= {"miou": end * (1 - math.exp(-4 * share)) + rng.normal() * 0.3, "device_seconds": 100 * share}
        report |= {f"seconds_{phase}": seconds for phase, seconds in (("data", 0.1), ("augment", 0.4), ("step", 8.0))}
        reports.append(report)
    return overrides, reports


def make_rows(budgets: tuple[int, ...] = (7, 14, 28), seeds: tuple[int, ...] = (0, 1, 2), **fields: Any) -> list[Row]:
    """A table of six methods; those with labels at every budget."""
    levels = {"synthetic only": 0.2, "unguided": 0.24, "guided": 0.4, "fine-tuned": 0.3, "joint training": 0.36}
    rows = []
    for method, level in {**levels, "oracle": 0.5}.items():
        fixed = {"synthetic only": 0, "unguided": 0, "oracle": 367}
        for budget in (fixed[method],) if method in fixed else budgets:
            for seed in seeds:
                rng = np.random.default_rng([seed, budget, len(rows)])
                confusion = rng.integers(0, 4000, (len(CAMVID11), len(CAMVID11)))
                hits = level + 0.05 * math.log2(max(budget, 7) / 7) + rng.normal() * 0.01
                np.fill_diagonal(confusion, (confusion.sum(1) * hits / (1 - hits)).astype(int))
                ious = class_ious(confusion)
                values: dict[str, Any] = {
                    "method": method,
                    "labels_train": budget,
                    "labels_val": 8 if method in ("unguided", "guided") else 0,
                    "seed": seed,
                    "real": "street",
                    "split": "test",
                    "start": "expert",
                    "pretraining": None,
                    "device_hours": 0.2,
                    "miou": mean_iou(ious),
                    "validation": mean_iou(ious) + rng.normal(),
                    "per_class": dict(zip(CAMVID11.classes, ious, strict=True)),
                    "images": 100,
                    "confusion": confusion.tolist(),
                }
                rows.append(Row(**values | fields))
    return rows


def make_sweep(runs: Path, trials: int = 50, failed: int = 1, rows: list[Row] | None = None, **data: str) -> Path:
    """A finished sweep in a folder of runs; its expert is ``expert-1``."""
    directory = runs / "tune-made-0123456789"
    directory.mkdir(parents=True)
    results = []
    for number in range(trials):
        overrides, reports = make_trial(number)
        folder = directory / "sweep" / f"ab_{number:05}"
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps({"kind": "translator", "overrides": overrides}))
        broken = number < failed
        (folder / "result.json").write_text(format_curve(reports[:1] if broken else reports))
        last = reports[-1]
        results.append(
            {
                "overrides": overrides,
                "miou": None if broken else last["miou"],
                "step": last["step"],
                "device_seconds": last["device_seconds"],
                "stopped_early": last["step"] < last["steps"],
                "error": "loss guidance is not finite on rank 0" if broken else None,
            }
        )
    (directory / "trials.json").write_text(json.dumps(results))
    config = load_config(overrides={f"data.{name}": address for name, address in data.items()})
    space = Space(search=SEARCH, trials=trials)
    record_sweep(directory, Sweep(command="raydelta tune made", space=space, config=config, expert="expert-1"))
    write_table(directory, make_rows() if rows is None else rows)
    (directory / "best.yaml").write_text("seed: 0\n")
    return directory
