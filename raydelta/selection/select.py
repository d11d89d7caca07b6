"""``raydelta select``: score a translator's pool over Ray, choose what to label next, write it for labelling tools.

The pool are the photographs of the training split whose label the run has not used. It streams through an actor pool of
Ray Data, and only scores and small feature vectors come back, so memory does not grow with the pixels. No label is
read, and no other split. Scores are kept beside the translator as they come: a selection that was killed goes on, and
one of another size asks the networks nothing.
"""

import io
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raydelta.compute.cluster import ensure_ray
from raydelta.compute.device import Place, find_place
from raydelta.compute.tasks import actor_pool, cause_of, run_remote
from raydelta.data.augment import to_float, to_uint8
from raydelta.data.shards import Sample, data_fingerprint, list_ids, read_manifest
from raydelta.data.streams import load_images, scan_rows
from raydelta.errors import UserError
from raydelta.networks.layers import freeze
from raydelta.progress import Progress
from raydelta.results.pictures import colourise, heat, outline, strip
from raydelta.selection.files import Choice, cell_box, training_command, write_selection
from raydelta.selection.strategies import (
    STRATEGIES,
    Networks,
    View,
    alike,
    choose_batch,
    find_strategy,
    rarity_weights,
    score,
)
from raydelta.storage import fingerprint, write_atomically
from raydelta.training.job import Job, find_job, label_ids
from raydelta.training.trained import load_generator, load_segmenter

WINDOW = 5
"""Frames: of this many that follow each other in a sequence, a batch holds one."""

BATCH = 16
KEPT_EVERY = 20.0  # seconds of scoring, at most, that a killed selection loses
DRAWN = 24  # rows of the contact sheet, at most


@dataclass(frozen=True)
class Selection:
    """What was chosen, where it was written, and how to train with it."""

    choices: list[Choice]
    directory: Path
    command: str


def select(
    run: Path,
    count: int,
    strategy: str = "random",
    *,
    out: Path | None = None,
    grid: tuple[int, int] | None = None,
    window: int = WINDOW,
) -> Selection:
    """Choose what to label next for a finished translator, and write it.

    Args:
        run: the directory of a translator, or of a sweep: its best one.
        count: images, or with a grid cells.
        out: where it is written; in the run's directory, if None.
        grid: columns and rows of the cells that are chosen in place of whole images.

    Raises:
        UserError: no translator, no such strategy, or a pool too small.
    """
    job = find_translator(run)
    find_strategy(strategy)
    check_count(job, count, grid or (1, 1))
    ensure_ray()
    choices, weights = choose(job, count, strategy, grid=grid or (1, 1), window=window)
    directory = (out or job.directory / f"selection-{strategy}").resolve()
    write_selection(job, choices, grid, directory)
    draw_selection(job, choices[:DRAWN], strategy, grid, weights, directory / "sheet.png")
    return Selection(choices, directory, training_command(job, choices, directory))


def find_translator(run: Path) -> Job:
    """The job of a finished translator, or of the best one of a sweep.

    Raises:
        UserError: the directory is neither.
    """
    job = find_job(run)
    if job.kind != "translator":
        raise UserError(f"{run}: is a finished {job.kind}; selection needs a translator (raydelta train translator)")
    return job


def list_pool(job: Job) -> list[Sample]:
    """The photographs of the training split whose labels the run has not used, neither to train nor to validate."""
    used = {name for names in label_ids(job) for name in names}
    return [sample for sample in list_ids(job.config.data.real, "train") if sample.id not in used]


def check_count(job: Job, count: int, grid: tuple[int, int]) -> None:
    """
    Raises:
        UserError: there is no such count or grid, or the pool does not have so many.
    """
    data, (columns, rows) = job.config.data, grid
    if not (1 <= columns <= data.width and 1 <= rows <= data.height):
        raise UserError(f"regions = {columns}x{rows}: the images have {data.width}x{data.height} pixels")
    pool = len(list_pool(job))
    if pool == 0:
        raise UserError(f"{data.real}: the run has used the label of every photograph to train on; add photographs")
    if not 1 <= count <= pool * columns * rows:
        cells = f" with {columns * rows} cells each" if columns * rows > 1 else ""
        raise UserError(f"count = {count}, but the pool has {pool} photographs{cells}; ask for 1 to as many")


def choose(
    job: Job, count: int, strategy: str, *, grid: tuple[int, int] = (1, 1), window: int = WINDOW
) -> tuple[list[Choice], Tensor]:
    """What to label next, best first, and the class weights (C,) that its scores are made with. Ray has to run.

    Raises:
        UserError: no such strategy, the windows leave too few, or the strategy cannot tell the cells apart.
    """
    method = find_strategy(strategy)
    if strategy == "coverage" and grid != (1, 1):
        raise UserError("strategy 'coverage' compares whole images: leave --regions out, or take another one")
    pool = {sample.id: sample for sample in list_pool(job)}
    if method.heat is alike and not method.diverse:  # nothing to ask the networks
        scored = {"id": np.array(sorted(pool)), "scores": np.ones((len(pool), grid[0] * grid[1]))}
    else:
        scored = score_pool(job, strategy, grid)
    ids, scores, features = scored["id"].tolist(), scored["scores"], scored.get("features")
    rows = [row for row, name in enumerate(ids) if name in pool]
    weights = torch.ones(job.classes)
    if method.rare:
        weights = rarity_weights(torch.from_numpy(scored["predicted"][rows]).sum(0).double()).float()
        scores = scores @ weights.numpy()

    places = sequence_places(list_ids(job.config.data.real, "train"))
    bought = set(label_ids(job)[0])
    labelled = [row for row, name in enumerate(ids) if name in bought]
    chosen = choose_batch(
        scores[rows],
        np.array([places[ids[row]][0] for row in rows]),
        np.array([places[ids[row]][1] for row in rows]),
        count,
        window,
        job.config.seed,
        features[rows] if features is not None else None,
        features[labelled] if features is not None else None,
    )
    found = [(pool[ids[rows[image]]], float(scores[rows[image], cell]), cell) for image, cell in chosen]
    return [Choice(sample.id, sample.sequence, score, cell, sample.labelled) for sample, score, cell in found], weights


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


def score_pool(job: Job, strategy: str, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What ``Scorer`` says of every photograph of the training split, by id."""
    import ray

    data = job.config.data
    split = read_manifest(data.real).splits["train"]
    kept = job.directory / "scores" / fingerprint([strategy, grid, data_fingerprint(data.real)])
    parts = [_read_part(path) for path in sorted(kept.glob("*.npz"))]
    done = {name for part in parts for name in part["id"].tolist()}
    if len(done) < split.rows:
        scored = scan_rows(data.real, "train", data.size, done).map_batches(
            Scorer,
            fn_constructor_args=(job, strategy, grid),
            batch_size=BATCH,
            **actor_pool(len(split.shards)),
        )
        progress, fresh, last = Progress("selection"), list[dict[str, np.ndarray]](), time.monotonic()
        try:
            for batch in scored.iter_batches(batch_size=None, batch_format="numpy"):
                fresh.append(batch)
                done.update(batch["id"].tolist())
                progress.update(len(done), split.rows, "photographs scored")
                if len(done) == split.rows or time.monotonic() - last > KEPT_EVERY:
                    parts.append(_keep_part(kept / f"{len(parts):05}.npz", fresh))
                    fresh, last = [], time.monotonic()
        except ray.exceptions.RayError as error:
            raise cause_of(error) from None
        progress.finish(f"{split.rows} photographs scored with {strategy}")
    whole = _joined(parts)
    return {name: values[np.argsort(whole["id"])] for name, values in whole.items()}


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _keep_part(path: Path, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    part = _joined(batches)
    part["id"] = part["id"].astype(str)  # as objects they would be pickled
    content = io.BytesIO()
    np.savez(content, **part)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
    return part


def _read_part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as part:
        return dict(part)


class Scorer:
    """An actor of the pool: decoded rows → id and what ``score`` says of them."""

    def __init__(self, job: Job, strategy: str, grid: tuple[int, int]) -> None:
        self.place, self.strategy, self.grid = _find_own_place(job), STRATEGIES[strategy], grid
        self.networks = load_networks(job, self.place)
        self.classes = job.classes

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            view = View(self.networks, to_float(torch.from_numpy(batch["pixels"]).to(self.place.device)))
            found = score(self.strategy, view, self.classes, self.grid)
            return {"id": batch["id"]} | {name: values.cpu().numpy() for name, values in found.items()}


def load_networks(job: Job, place: Place) -> Networks:
    """The networks of a finished translator on the place's device."""
    assert job.expert is not None
    segmenter = freeze(load_segmenter(job.expert, job.classes)).to(place.device, place.dtype)
    deepest: list[Tensor] = []
    segmenter.encoder.register_forward_hook(lambda module, arguments, stages: deepest.append(stages[-1]))  # type: ignore[union-attr]

    def expert(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = segmenter(images.to(place.dtype)).float()
        return logits, deepest.pop().float().mean((2, 3))

    r2s, s2r = (load_generator(job.directory, name, place) for name in ("r2s_ema", "s2r_ema"))
    return Networks(r2s, s2r, expert)


def _load(job: Job, ids: list[str], place: Place) -> Tensor:
    data = job.config.data
    images = load_images(data.real, "train", data.size, labels=False, ids=ids)
    return to_float(torch.from_numpy(images.pixels).to(place.device))


def _find_own_place(job: Job) -> Place:
    torch.set_num_threads(1)
    return find_place(job.config)


def draw_selection(
    job: Job,
    choices: Sequence[Choice],
    strategy: str,
    grid: tuple[int, int] | None,
    weights: Tensor,
    path: Path,
) -> None:
    """The contact sheet: real | translated | prediction | heat map of every choice, with its score."""
    run_remote(_draw_here, job, choices, strategy, grid, weights, path)


def _draw_here(
    job: Job,
    choices: Sequence[Choice],
    strategy: str,
    grid: tuple[int, int] | None,
    weights: Tensor,
    path: Path,
) -> None:
    place, taxonomy = _find_own_place(job), job.taxonomy
    networks, size = load_networks(job, place), job.config.data.size
    rows, heats = [], []
    with torch.inference_mode():
        for choice in choices:
            view = View(networks, _load(job, [choice.id], place))
            real, translated = (
                to_uint8(part)[0].permute(1, 2, 0).cpu().numpy() for part in (view.images, view.translated)
            )
            if grid:
                real = outline(real, cell_box(choice.cell, grid, size))
            rows.append([real, translated, colourise(view.classes[0].byte().cpu().numpy(), taxonomy)])
            heats.append((STRATEGIES[strategy].heat(view) * weights.to(place.device)[view.classes])[0].cpu().numpy())
    hottest = float(np.quantile(heats, 0.99)) or 1.0  # one pixel must not leave all others dark
    for row, values in zip(rows, heats, strict=True):
        row.append(heat(row[0], (values / hottest).clip(0, 1)))
    captions = [f"{rank}.  score {choice.score:.4f}  {choice.id}" for rank, choice in enumerate(choices, 1)]
    strip(rows, ["real", "translated", "prediction", strategy], path, captions)
