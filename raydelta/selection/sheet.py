"""The contact sheet of a selection: a row for each choice, so that a person can see what the strategy prefers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raydelta.compute.tasks import run_remote
from raydelta.data.labels import Grid, cell_box
from raydelta.data.pixels import to_float, to_uint8
from raydelta.data.streams import load_images
from raydelta.results.pictures import colourise, heat, outline, strip
from raydelta.selection.files import Choice
from raydelta.selection.scoring import find_own_place, load_networks
from raydelta.selection.strategies import STRATEGIES, View
from raydelta.training.job import Job

ROWS = 24
"""Choices on the sheet, at most."""


def draw_selection(
    job: Job, choices: Sequence[Choice], strategy: str, grid: Grid | None, weights: Tensor, path: Path
) -> None:
    """Real, translated if it is, prediction and, where the strategy looks at pixels, heat map and score: the first
    choices."""
    run_remote(_draw_here, job, choices[:ROWS], strategy, grid, weights, path)


def _draw_here(
    job: Job, choices: Sequence[Choice], strategy: str, grid: Grid | None, weights: Tensor, path: Path
) -> None:
    place, taxonomy = find_own_place(job), job.taxonomy
    networks, size = load_networks(job, place, strategy == "committee"), job.config.data.size
    method = STRATEGIES[strategy]
    ids = list(dict.fromkeys(choice.id for choice in choices))  # an image may give several cells
    pixels = load_images(job.config.data.real, "train", size, labels=False, ids=ids).pixels
    photographs = dict(zip(ids, pixels, strict=True))
    rows, heats = [], []
    with torch.inference_mode():
        for choice in choices:
            view = View(networks, to_float(torch.from_numpy(photographs[choice.id][None]).to(place.device)))
            real, translated = (
                to_uint8(part)[0].permute(1, 2, 0).cpu().numpy() for part in (view.images, view.translated)
            )
            if grid:
                real = outline(real, cell_box(choice.cell, grid, size))
            shown = [real, translated] if networks.r2s is not None else [real]
            rows.append([*shown, colourise(view.classes[0].byte().cpu().numpy(), taxonomy)])
            if method.looks:
                heats.append((method.heat(view) * weights.to(place.device)[view.classes])[0].cpu().numpy())
    titles = ["real", *["translated"] * (networks.r2s is not None), "prediction"]
    captions = [f"{rank}.  {choice.id}" for rank, choice in enumerate(choices, 1)]
    if method.looks:
        hottest = float(np.quantile(heats, 0.99)) or 1.0  # one pixel must not leave all others dark
        for row, values in zip(rows, heats, strict=True):
            row.append(heat(row[0], (values / hottest).clip(0, 1)))
        titles.append(strategy)
        captions = [f"{text}  score {choice.score:.4f}" for text, choice in zip(captions, choices, strict=True)]
    strip(rows, titles, path, captions)
