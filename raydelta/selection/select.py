"""``raydelta select``: choose what to label next for a finished training, and write it for labelling tools.

The pool are the photographs of the training split whose label the run has not used. No label is read, and no other
split.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydelta.compute.cluster import ensure_ray
from raydelta.data.labels import Grid
from raydelta.data.price import Price
from raydelta.data.shards import Sample, list_ids
from raydelta.errors import UserError
from raydelta.results.runs import resolve_run
from raydelta.search_space import TRANSLATING
from raydelta.selection.batch import choose_batch, choose_typical, stride_over_time
from raydelta.selection.files import Choice, training_arguments, training_command, write_selection
from raydelta.selection.scoring import predict_pool, score_pool
from raydelta.selection.sheet import draw_selection
from raydelta.selection.strategies import find_strategy, rarity_weights
from raydelta.storage.bucket import publish
from raydelta.training.assemble import load_labelled
from raydelta.training.job import Job, check_trust, find_job, label_ids

WINDOW = 5
"""Frames. A batch holds at most one of so many successive frames of a sequence."""

CELL = 16
"""Width and height in pixels of a cell, for strategies that choose cells."""


@dataclass(frozen=True)
class Selection:
    """What was chosen, where it was written, and how to train with it."""

    choices: list[Choice]
    directory: Path
    price: Price  # by the present prediction
    command: str


def select(
    run: str | Path,
    count: int,
    strategy: str = "random",
    *,
    method: str | None = None,
    out: Path | None = None,
    grid: Grid | None = None,
    window: int = WINDOW,
    trust: bool = False,
) -> Selection:
    """Choose what to label next for a finished training, and write it.

    Args:
        run: directory, address or name of a translator or of a segmenter trained on labels (joint training, …), or of
            a sweep; or ``latest``.
        count: images, or with a grid cells.
        method: which row of a sweep; its best translator, if None.
        out: output directory; by default one in the run's directory.
        grid: columns and rows of the cells that are chosen in place of whole images; a strategy for cells has its own.
        trust: open its data sets also at addresses that no command of yours has named.

    Raises:
        UserError: nothing that labels train, no such strategy, or a pool too small.
    """
    job = find_learner(resolve_run(run), method)
    check_trust(job, trust)
    find_strategy(strategy)
    grid = grid or default_grid(job, strategy)
    check_count(job, count, grid)
    ensure_ray()
    choices, weights = choose(job, count, strategy, grid=grid, window=window)
    directory = (out or job.directory / f"selection-{strategy}").resolve()
    shown = None if grid == (1, 1) else grid
    predictions = predict_pool(job, sorted({choice.id for choice in choices}))
    if grid == (1, 1):
        _warn_of_classes(job, predictions)
    price = write_selection(job, choices, shown, predictions, strategy, directory)
    draw_selection(job, choices, strategy, shown, weights, directory / "sheet.png")
    real = None if all(choice.labelled for choice in choices) else "SET_WITH_THE_NEW_LABELS"
    command = training_command(directory, training_arguments(job, choices), real)
    publish(directory)
    return Selection(choices, directory, price, command)


def find_learner(run: Path, method: str | None = None) -> Job:
    """The job of a finished training that labels teach, or of a row of a sweep: its best translator, if None.

    Raises:
        UserError: the directory is neither.
    """
    job = find_job(run, method)
    if job.recipe.labels == "none" or job.recipe.members:
        raise UserError(
            f"{run}: is a finished {job.kind}, which no label teaches; choose with a translator or with a segmenter "
            "trained on labels (raydelta train joint-training)"
        )
    return job


def default_grid(job: Job, strategy: str) -> Grid:
    """The grid of a strategy: cells of 16 x 16 pixels if it is one for cells, else whole images.

    Raises:
        UserError: no such strategy.
    """
    if not find_strategy(strategy).cells:
        return 1, 1
    return max(1, job.config.data.width // CELL), max(1, job.config.data.height // CELL)


def list_pool(job: Job, grid: Grid = (1, 1)) -> list[Sample]:
    """The photographs of the training split whose label the run has not used, neither to train nor to validate.

    With a grid also those of which it has used only some cells.
    """
    used = {name for names in label_ids(job) for name in names}
    if grid != (1, 1):
        used -= {name for name, cells in bought_cells(job).items() if len(cells) < grid[0] * grid[1]}
    return [sample for sample in list_ids(job.config.data.real, "train") if sample.id not in used]


def bought_cells(job: Job) -> Mapping[str, tuple[int, ...]]:
    """The cells that the run has bought, of images that are not labelled as a whole."""
    ids = job.config.labels.ids
    return ids.cells.images if ids is not None and ids.cells is not None else {}


def check_count(job: Job, count: int, grid: Grid) -> None:
    """Check a count and a grid against the pool.

    Raises:
        UserError: the count or the grid is too large, or the run has bought cells of another grid.
    """
    data, (columns, rows) = job.config.data, grid
    if not (1 <= columns <= data.width and 1 <= rows <= data.height):
        raise UserError(f"regions = {columns}x{rows}: the images have {data.width}x{data.height} pixels")
    ids = job.config.labels.ids
    if grid != (1, 1) and ids is not None and ids.cells is not None and ids.cells.grid != grid:
        before = "x".join(map(str, ids.cells.grid))
        raise UserError(f"regions = {columns}x{rows}: the run has bought cells of a {before} grid; take the same one")
    here = {sample.id for sample in list_ids(data.real, "train")}
    gone = [name for names in label_ids(job) for name in names if name not in here]
    if gone:
        raise UserError(
            f"{data.real}: {len(gone)} of the images that the run has labels of are not there any more: "
            f"{', '.join(gone[:5])}; bring them back, or train on what is there before you choose"
        )
    pool = len(list_pool(job, grid))
    if pool == 0:
        raise UserError(f"{data.real}: the run has used the label of every photograph to train on; add photographs")
    bought = sum(map(len, bought_cells(job).values())) if grid != (1, 1) else 0
    available = pool * columns * rows - bought
    if not 1 <= count <= available:
        cells = f" with {columns * rows} cells each" if columns * rows > 1 else ""
        raise UserError(f"count = {count}, but the pool has {pool} photographs{cells}; ask for 1 to {available}")
    if grid != (1, 1) and count < job.classes:
        warnings.warn(
            f"count = {count} cells, but there are {job.classes} classes: most will have no label", stacklevel=3
        )


def _warn_of_classes(job: Job, predictions: Mapping[str, NDArray[np.uint8]]) -> None:
    """Name the classes that no label will show, where there are fewer labels than classes.

    Reads the labels that the run has bought, and of the others the present prediction.
    """
    bought, _ = load_labelled(job)
    labels = len(predictions) + (len(bought) if bought is not None else 0)
    if labels >= job.classes:
        return
    shown = {int(found) for mask in predictions.values() for found in np.unique(mask)}
    if bought is not None and bought.labels is not None:
        shown.update(np.unique(bought.labels).tolist())
    missing = [name for number, name in enumerate(job.taxonomy.classes) if number not in shown]
    if missing:
        warnings.warn(
            f"{labels} labels for {job.classes} classes: by the present prediction none of them shows "
            f"{', '.join(missing)}. A class without a label is learned from synthetic images alone: choose more",
            stacklevel=3,
        )


def choose(
    job: Job, count: int, strategy: str, *, grid: Grid = (1, 1), window: int = WINDOW
) -> tuple[list[Choice], Tensor]:
    """What to label next, best first, and the class weights (C,) behind the scores. Ray has to run.

    Raises:
        UserError: no such strategy, the windows leave too few, or the strategy cannot tell the cells apart.
    """
    method = find_strategy(strategy)
    if method.whole and grid != (1, 1):
        raise UserError(f"strategy {strategy!r} compares whole images: leave --regions out, or take another one")
    if strategy in TRANSLATING and job.kind != "translator":
        raise UserError(
            f"strategy {strategy!r} compares translations, and {job.directory.name} is no translator: take another one"
        )
    weights = torch.ones(job.classes)
    samples = sorted(list_ids(job.config.data.real, "train"))
    pool = {sample.id: sample for sample in list_pool(job, grid)}
    if method.way == "stride":
        order = sorted(samples, key=lambda sample: (sample.sequence, sample.id))
        sequences = np.unique([sample.sequence for sample in order], return_inverse=True)[1]
        labelled = np.array([sample.id not in pool for sample in order])
        chosen = stride_over_time(sequences, labelled, count, job.config.seed)
        return [_choice(order[row], None, cell) for row, cell in chosen], weights

    if method.looks or method.diverse or method.way == "typical":
        scored = score_pool(job, strategy, grid)
    else:  # nothing to ask the networks
        scored = {"id": np.array(sorted(pool)), "scores": np.ones((len(pool), grid[0] * grid[1]))}
    ids, scores, features = scored["id"].tolist(), scored["scores"], scored.get("features")
    rows = [row for row, name in enumerate(ids) if name in pool]
    bought = set(label_ids(job)[0])
    labelled_rows = [row for row, name in enumerate(ids) if name in bought]
    if method.way == "typical":
        assert features is not None
        both = [*labelled_rows, *rows]
        chosen = choose_typical(features[both], range(len(labelled_rows)), count, job.config.seed)
        return [_choice(pool[ids[both[row]]], None, cell) for row, cell in chosen], weights

    if method.rare:
        weights = rarity_weights(torch.from_numpy(scored["predicted"][rows]).sum(0).double()).float()
        scores = scores @ weights.numpy()
    places, had = sequence_places(samples), np.zeros((len(rows), grid[0] * grid[1]), dtype=bool)
    for index, row in enumerate(rows):
        had[index, list(bought_cells(job).get(ids[row], ()))] = True
    chosen = choose_batch(
        scores[rows],
        np.array([places[ids[row]][0] for row in rows]),
        np.array([places[ids[row]][1] for row in rows]),
        count,
        window,
        job.config.seed,
        features[rows] if features is not None else None,
        features[labelled_rows] if features is not None else None,
        grid=grid,
        bought=had,
    )
    return [
        _choice(pool[ids[rows[image]]], float(scores[rows[image], cell]) if method.looks else None, cell)
        for image, cell in chosen
    ], weights


def _choice(sample: Sample, score: float | None, cell: int) -> Choice:
    return Choice(sample.id, sample.sequence, score, cell, sample.labelled)


def sequence_places(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """Id → number of its sequence, and its place among the sorted ids of the sequence."""
    sequences: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        sequences[sample.sequence].append(sample.id)
    return {
        name: (number, place)
        for number, sequence in enumerate(sorted(sequences))
        for place, name in enumerate(sorted(sequences[sequence]))
    }
