"""``raydelta predict``: masks for photographs and videos, with a trained model, over an actor pool of Ray Data.

The actors read, predict and write; the driver learns only what became of each input. A mask is there whole or not at
all, so a run that was killed goes on where it was.
"""

import csv
import io
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raydelta.compute.cluster import ensure_ray
from raydelta.compute.tasks import actor_pool, cause_of
from raydelta.data.reading import read_image
from raydelta.data.shards import BadItem
from raydelta.data.tables import values_in
from raydelta.deploy.inputs import Input, find_inputs, read_frames
from raydelta.deploy.model import SMALLEST, Deployed, enlarge, load
from raydelta.errors import UserError
from raydelta.progress import Progress
from raydelta.results.pictures import Pixels, colourise, overlay
from raydelta.storage import absolute, without_secrets, write_atomically

KINDS = ("ids", "colour", "overlay")
MANIFEST = "predict.json"
BATCH = 8
BLOCKS = 1000  # tasks of Ray Data, at most
THREADS = 4  # of an actor, to read and write files beside the networks
STRIP = 64  # rows of a photograph whose logits are there at once


@dataclass(frozen=True)
class Predicted:
    """What became of the inputs."""

    directory: Path
    images: int  # masks written now, frames of videos included
    before: int  # inputs that were done already
    skipped: list[tuple[str, str]]  # file, reason
    void: list[str]  # classes that the asked-for taxonomy lacks


def predict(
    run: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    method: str | None = None,
    taxonomy: str | None = None,
    kinds: Sequence[str] = ("ids",),
    batch: int = BATCH,
    window: tuple[int, int] | None = None,
) -> Predicted:
    """Write ``KIND/NAME.png`` for every input, in its own size, and ``skipped.csv`` for what could not be read.

    Args:
        run: directory of a training or of a sweep, or an exported folder.
        inputs: files, folders, globs and addresses.
        method: which row of a sweep; its best translator, if None.
        taxonomy: whose ids are written; the run's own, if None.
        window: width and height, in pixels of the resized image, of what is predicted at once; larger images are
            predicted in overlapping windows. Twice those of training, if None.

    Raises:
        UserError: bad input, or ``out`` holds something else.
    """
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange or not kinds:
        raise UserError(f"kinds = {','.join(kinds)!r}: choose of {', '.join(KINDS)}, with commas between")
    model = load(run, method)
    if window is not None and min(window) < max(SMALLEST, model.config.multiple):
        raise UserError(
            f"window = {window[0]}x{window[1]}: at least {max(SMALLEST, model.config.multiple)} pixels each"
        )
    values, void = values_in(taxonomy, model.config.taxonomy) if taxonomy else (list(range(256)), [])
    found, bad = find_inputs(inputs)
    out = out.expanduser().resolve()
    settings = {
        "run": str(run.expanduser().resolve()),
        "model": model.config.run,
        "inputs": [without_secrets(absolute(source)) for source in inputs],
        "taxonomy": taxonomy or model.config.taxonomy.name,
        "values": dict(zip(model.config.taxonomy.classes, values, strict=False)),
        "kinds": list(kinds),
        "window": list(window) if window else None,
    }
    _claim(out, settings)
    left = [item for item in found if item.is_video or not all(p.exists() for p in _files(out, kinds, item.name))]
    predictor = (
        run.expanduser().resolve(),
        method,
        out,
        tuple(kinds),
        values,
        window or (2 * model.config.width, 2 * model.config.height),
        batch,
    )
    images, skipped = _predict_on_ray(predictor, left, batch) if left else (0, [])
    skipped = sorted([*skipped, *((item.file, item.rule) for item in bad)])
    _write_skipped(out, skipped)
    return Predicted(out, images, len(found) - len(left), skipped, void)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Begin the folder, or go on in it."""
    manifest = out / MANIFEST
    if manifest.exists():
        try:
            before = json.loads(manifest.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{manifest}: cannot be read: {error}; choose another folder") from error
        other = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
        if other:
            raise UserError(f"{out}: holds predictions with other {' and '.join(other)}; choose another folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already, and not from raydelta predict; choose a new folder")
    else:
        write_atomically(manifest, json.dumps(settings, indent=1))


def _files(out: Path, kinds: Iterable[str], name: str) -> list[Path]:
    return [out / kind / f"{name}.png" for kind in kinds]


def _predict_on_ray(predictor: tuple, items: Sequence[Input], batch: int) -> tuple[int, list[tuple[str, str]]]:
    ensure_ray()
    import ray

    rows = [{"name": item.name, "address": item.address} for item in items]
    blocks = min(BLOCKS, -(-len(rows) // batch))
    results = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        Predictor, fn_constructor_args=predictor, batch_size=batch, **actor_pool(blocks)
    )
    progress, start, done, images, skipped = Progress("predict"), time.monotonic(), 0, 0, list[tuple[str, str]]()
    try:
        for found in results.iter_batches(batch_size=None, batch_format="numpy"):
            done += len(found["name"])
            images += int(found["images"].sum())
            skipped += [(f, r) for f, r in zip(found["file"].tolist(), found["reason"].tolist(), strict=True) if r]
            progress.update(done, len(rows), f"inputs, {images / (time.monotonic() - start):.1f} images/s")
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None
    progress.finish(f"{images} images, {len(skipped)} inputs skipped")
    return images, skipped


def _write_skipped(out: Path, skipped: Sequence[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *skipped])
    write_atomically(out / "skipped.csv", text.getvalue())


def _read(address: str) -> Pixels:
    return np.asarray(read_image(address)[0])


class Predictor:
    """An actor of the pool: names and addresses → masks in the folder, and what became of each."""

    def __init__(
        self,
        run: Path,
        method: str | None,
        out: Path,
        kinds: tuple[str, ...],
        values: Sequence[int],
        window: tuple[int, int],
        batch: int,
    ) -> None:
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.window, self.batch = load(run, method).to(self.device), window, batch
        self.out, self.kinds, self.values = out, kinds, np.array(values, dtype=np.uint8)
        self.files = ThreadPoolExecutor(THREADS)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        items = [Input(*row) for row in zip(rows["name"].tolist(), rows["address"].tolist(), strict=True)]
        reasons, counts = dict.fromkeys(items, ""), dict.fromkeys(items, 0)
        reading = {item: self.files.submit(_read, item.address) for item in items if not item.is_video}
        images = []
        for item in items:
            try:
                if item.is_video:
                    counts[item] = self._predict_video(item)
                else:
                    images.append((item.name, reading[item].result()))
                    counts[item] = 1
            except UserError as error:
                reasons[item] = error.rule if isinstance(error, BadItem) else str(error)
        self._predict(images)
        return {
            "name": [item.name for item in items],
            "file": [without_secrets(item.address) for item in items],
            "reason": list(reasons.values()),
            "images": list(counts.values()),
        }

    def _predict_video(self, item: Input) -> int:
        """Masks of a video's frames, those that are there already but decoded; how many were written."""
        numbered = enumerate(read_frames(item.address), 1)
        named = ((f"{item.name}/{number:06}", frame) for number, frame in numbered)
        fresh = (pair for pair in named if not all(p.exists() for p in _files(self.out, self.kinds, pair[0])))
        written = 0
        while chunk := list(islice(fresh, self.batch)):
            self._predict(chunk)
            written += len(chunk)
        return written

    def _predict(self, images: Sequence[tuple[str, Pixels]]) -> None:
        ordered, writing = sorted(images, key=lambda pair: pair[1].shape), []
        for shape, group in groupby(ordered, key=lambda pair: pair[1].shape):
            alike = list(group)
            with torch.inference_mode():
                # One by one what is as large as a photograph.
                small = [self.model.prepare(torch.from_numpy(image.copy())[None].to(self.device)) for _, image in alike]
                logits = predict_windows(self.model, torch.cat(small), self.window)
                for (name, image), each in zip(alike, logits, strict=True):
                    mask = enlarged_ids(each, *shape[:2]).cpu().numpy()
                    writing.append(self.files.submit(self._write, name, image, mask))
        for written in writing:
            written.result()

    def _write(self, name: str, image: Pixels, mask: Pixels) -> None:
        taxonomy = self.model.config.taxonomy
        for kind, path in zip(self.kinds, _files(self.out, self.kinds, name), strict=True):
            if kind == "ids":
                picture = self.values[mask]
            else:
                picture = colourise(mask, taxonomy) if kind == "colour" else overlay(image, mask, taxonomy)
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "PNG")
            write_atomically(path, content.getvalue())


def predict_windows(model: Deployed, images: Tensor, window: tuple[int, int]) -> Tensor:
    """Logits (N, C, h, w) of images (N, 3, h, w) in [-1, 1], where they are larger than the window in overlapping ones.

    Neighbours overlap by half or more, and each counts the less the nearer its border is.
    """
    step = model.config.multiple
    high, wide = (min(size, -(-most // step) * step) for size, most in zip(images.shape[2:], window[::-1], strict=True))
    if (high, wide) == images.shape[2:]:
        return model.networks(images)
    weight = _tent(high, images)[:, None] * _tent(wide, images)
    total = images.new_zeros(len(images), len(model.config.taxonomy), *images.shape[2:])
    summed = images.new_zeros(images.shape[2:])
    for top in _starts(images.shape[2], high):
        for left in _starts(images.shape[3], wide):
            place = ..., slice(top, top + high), slice(left, left + wide)
            total[place] += model.networks(images[place]) * weight
            summed[place] += weight
    return total / summed


def enlarged_ids(logits: Tensor, height: int, width: int) -> Tensor:
    """Ids uint8 (H, W) of logits (C, h, w) that are enlarged to that size, a strip at a time: whole, they would take
    4 C bytes per pixel of a photograph."""
    rows = (torch.arange(height, device=logits.device) + 0.5) * (logits.shape[1] / height) - 0.5
    rows = rows.clamp(0, logits.shape[1] - 1)
    strips = []
    for strip in rows.split(STRIP):
        above = strip.floor().long()
        below = (above + 1).clamp(max=logits.shape[1] - 1)
        between = torch.lerp(logits[:, above], logits[:, below], (strip - above)[:, None].to(logits.dtype))
        strips.append(enlarge(between[None], len(strip), width).max(1).indices[0].byte())
    return torch.cat(strips)


def _tent(size: int, like: Tensor) -> Tensor:
    ramp = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(ramp, ramp.flip(0))


def _starts(size: int, window: int) -> list[int]:
    return [*range(0, size - window, window // 2), size - window]
