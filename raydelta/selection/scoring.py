"""Scores of a pool of photographs: the networks look at every photograph once, over a Ray Data actor pool.

Only scores and small feature vectors come back, so memory does not grow with the pixels. No label is read. Scores are
saved beside the training as they come: a selection that was killed goes on from there, and one of another size asks
the networks nothing.
"""

import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydelta.compute.device import Place, find_place
from raydelta.compute.tasks import actor_pool, cause_of, run_remote
from raydelta.data.pixels import to_float
from raydelta.data.shards import data_fingerprint, read_manifest
from raydelta.data.streams import load_images, scan_rows
from raydelta.errors import UserError
from raydelta.networks.layers import freeze
from raydelta.progress import Progress
from raydelta.recipes import Kind
from raydelta.selection.strategies import STRATEGIES, Networks, View, score
from raydelta.storage.files import fingerprint, write_atomically
from raydelta.training.job import Job, make_job, read_job
from raydelta.training.trained import load_generator, load_model, load_segmenter

BATCH = 16
SAVE_EVERY = 20.0
"""Seconds of scoring, at most, that a killed selection loses."""


def score_pool(job: Job, strategy: str, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """The output of ``Scorer`` for every photograph of the training split, sorted by id."""
    import ray

    data = job.config.data
    split = read_manifest(data.real).splits["train"]
    inputs = [strategy, grid, data_fingerprint(data.real)]
    if strategy == "committee":
        inputs.append(find_student(job).directory.name)
    kept = job.directory / "scores" / fingerprint(inputs)
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
                if len(done) == split.rows or time.monotonic() - last > SAVE_EVERY:
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
    """An actor of the pool: decoded rows → their ids and the output of ``score``."""

    def __init__(self, job: Job, strategy: str, grid: tuple[int, int]) -> None:
        self.place, self.strategy, self.grid = find_own_place(job), STRATEGIES[strategy], grid
        self.networks = load_networks(job, self.place, student=strategy == "committee")
        self.classes = job.classes

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            view = View(self.networks, to_float(torch.from_numpy(batch["pixels"]).to(self.place.device)))
            found = score(self.strategy, view, self.classes, self.grid)
            return {"id": batch["id"]} | {name: values.cpu().numpy() for name, values in found.items()}


def predict_pool(job: Job, ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Id → the classes that the networks see in a photograph, [H, W] at the size of training. Ray has to run."""
    return run_remote(_predict_here, job, list(ids))


def _predict_here(job: Job, ids: list[str]) -> dict[str, NDArray[np.uint8]]:
    place, data = find_own_place(job), job.config.data
    predict = load_model(job, place).predict
    found: dict[str, NDArray[np.uint8]] = {}
    for start in range(0, len(ids), BATCH):
        batch = load_images(data.real, "train", data.size, labels=False, ids=ids[start : start + BATCH])
        with torch.inference_mode():
            logits = predict(to_float(torch.from_numpy(batch.pixels).to(place.device)))
        found |= dict(zip(batch.ids, logits.max(1).indices.byte().cpu().numpy(), strict=True))
    return found


def load_networks(job: Job, place: Place, student: bool = False) -> Networks:
    """The networks of a finished training on the place's device, and the student trained beside it if asked for.

    Raises:
        UserError: there is no such student.
    """
    translates = job.kind == "translator"
    directory = job.expert if translates else job.directory
    assert directory is not None
    segmenter = freeze(load_segmenter(directory, job.classes)).to(place.device, place.dtype)
    encoder = getattr(segmenter, "encoder", None)  # an expert of the user's may have none
    layers: list[list[Tensor]] = []
    if isinstance(encoder, nn.Module):
        encoder.register_forward_hook(lambda module, arguments, found: layers.append(found))

    def see(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = segmenter(images.to(place.dtype)).float()
        return logits, [layer.float() for layer in layers.pop()] if layers else [logits]

    if not translates:
        return Networks(see)
    r2s, s2r = (load_generator(job.directory, name, place) for name in ("r2s_ema", "s2r_ema"))
    return Networks(see, r2s, s2r, load_model(find_student(job), place).predict if student else None)


STUDENTS: tuple[Kind, ...] = ("joint training", "mean teacher", "student", "mean teacher, translated")
"""The other member of the committee, best first. The first two use no translator, so their errors are other ones."""


def find_student(job: Job) -> Job:
    """A student trained beside a translator, with the same settings and labels.

    Raises:
        UserError: there is none.
    """
    for kind in STUDENTS:
        student = make_job(kind, job.config, job.directory.parent, job.expert)
        if student.done:
            return read_job(student.directory)
    raise UserError(
        "strategy 'committee' compares the translator with a student of the same labels, and there is none for "
        f"{job.directory}: give the directory of a sweep with one of {', '.join(STUDENTS)} in its table"
    )


def find_own_place(job: Job) -> Place:
    """The device of a Ray task or actor, which owns one CPU."""
    torch.set_num_threads(1)
    return find_place(job.config)
