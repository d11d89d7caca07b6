"""``raydelta predict``: masks for photographs and videos, with a trained model.

A few photographs are predicted in this process. More, and videos, go through a Ray Data pipeline: read on CPUs →
segment on GPUs (or CPUs) → write on CPUs, where no stage waits for another's files. A mask is there whole or not at
all, so a run that was killed goes on where it was.
"""

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from raydelta.compute.cluster import ensure_ray
from raydelta.compute.tasks import actor_pool, cause_of
from raydelta.data.tables import values_in
from raydelta.deploy.frames import KINDS, SOFTWARE, Frame, Task, read_frames_of, read_row, write_frame
from raydelta.deploy.inputs import Input, find_inputs
from raydelta.deploy.network import SMALLEST, Deployed, read_network
from raydelta.deploy.windows import BATCH, segment
from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.progress import Progress
from raydelta.storage.bucket import as_local
from raydelta.storage.files import absolute, is_remote, without_secrets, write_atomically

if TYPE_CHECKING:
    from ray.data import Dataset

MANIFEST = "predict.json"
FEW = 16  # photographs that are predicted in this process: starting Ray would take longer
BLOCKS = 1000  # tasks of Ray Data, at most
THREADS = 4  # to read and write files beside the networks, in this process
TASK_CPUS = 0.5  # of a task that reads or writes


@dataclass(frozen=True)
class Predicted:
    """What became of the inputs."""

    model: str  # the training that was used
    method: str | None  # its row of the table
    directory: Path | None  # of the masks; None: they lie beside the photographs
    images: int  # masks written now, frames of videos included
    before: int  # inputs that were done already
    skipped: list[tuple[str, str]]  # file, reason
    void: list[str]  # classes that the asked-for taxonomy lacks
    written: list[Path] = field(default_factory=list)  # beside the photographs


def predict(
    run: str | Path,
    inputs: Sequence[str],
    out: Path | None = None,
    *,
    method: str | None = None,
    taxonomy: str | None = None,
    kinds: Sequence[str] | None = None,
    batch: int = BATCH,
    window: tuple[int, int] | None = None,
) -> Predicted:
    """Write ``OUT/KIND/NAME.png`` for every input, in its own size, and ``skipped.csv`` for what could not be read.

    Args:
        run: directory or address of a training or of a sweep, or an exported folder.
        inputs: files, folders, globs and addresses.
        out: directory to write; None writes ``PHOTO-KIND.png`` beside each photograph, which has to be a local file.
        method: which row of a sweep; the recommended one, if None.
        taxonomy: whose ids are written; the run's own, if None.
        kinds: of ``KINDS``; if None, ``ids``, or ``overlay`` beside photographs.
        window: width and height, in pixels of the resized image, of what is predicted at once; larger images are
            predicted in overlapping windows. Twice the size of training, if None.

    Raises:
        UserError: bad input, ``out`` holds other files, or nothing can be written.
    """
    kinds = tuple(kinds if kinds is not None else ("ids",) if out else ("overlay",))
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange or not kinds:
        raise UserError(f"kinds = {','.join(kinds)!r}: choose from {', '.join(KINDS)}, with commas between")
    run = as_local(run)
    network = read_network(run, method)
    config = network.config
    if window is not None and min(window) < max(SMALLEST, config.multiple):
        raise UserError(f"window = {window[0]}x{window[1]}: at least {max(SMALLEST, config.multiple)} pixels each")
    values, void = values_in(taxonomy, config.taxonomy) if taxonomy else (list(range(256)), [])
    if out is None:
        _check_beside(inputs)
    found, bad = find_inputs(inputs)
    task = Task(
        run.resolve(),
        method,
        out.expanduser().resolve() if out else None,
        kinds,
        config.taxonomy,
        tuple(values),
        window,
        batch,
    )
    if task.out is not None:
        settings = {
            "model": config.run,
            "inputs": [without_secrets(absolute(source)) for source in inputs],
            "taxonomy": taxonomy or config.taxonomy.name,
            "values": dict(zip(config.taxonomy.classes, values, strict=False)),
            "kinds": list(kinds),
            "window": list(window) if window else None,
        }
        _claim(task.out, settings)
    else:
        found = [Input(item.address.rpartition(".")[0], item.address) for item in found]
        for item in found:
            _refuse_foreign(task.files(item.name))
    left = [item for item in found if item.is_video or not task.is_done(item.name)]
    images, skipped = 0, list[tuple[str, str]]()
    if left:
        few = len(left) <= FEW and not any(item.is_video for item in left)
        results = predict_here(network, left, task) if few else _predict_on_ray(left, task)
        images, skipped = _follow(results, len(left))
    reasons = dict([*skipped, *((item.file, item.rule) for item in bad)])
    if task.out is not None:
        _write_skipped(task.out, sorted(reasons.items()))
    written = [path for item in found for path in task.files(item.name) if task.out is None and path.exists()]
    return Predicted(
        config.run, config.method, task.out, images, len(found) - len(left), sorted(reasons.items()), void, written
    )


def _check_beside(inputs: Sequence[str]) -> None:
    for source in inputs:
        path = Path(source).expanduser()
        if is_remote(source) or path.is_dir() or (not path.exists() and set("*?[") & set(source)):
            raise UserError(f"{without_secrets(source)}: no single photograph; say with --out where the masks shall go")
        if Input("", source).is_video:
            raise UserError(f"{source}: a video; say with --out where the masks of its frames shall go")


def _refuse_foreign(paths: Sequence[Path]) -> None:
    """A picture beside a photograph is only replaced by another of ours."""
    for path in paths:
        if path.exists():
            try:
                with Image.open(path) as picture:
                    ours = picture.info.get("Software") == SOFTWARE
            except (OSError, ValueError):
                ours = False
            if not ours:
                raise UserError(f"{path}: exists and is not from raydelta; rename it, or give --out")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Begin the folder, or go on in it."""
    manifest = out / MANIFEST
    if manifest.exists():
        try:
            before = read_json_file(manifest)
        except (OSError, ValueError) as error:
            raise UserError(f"{manifest}: cannot be read: {error}; choose another folder") from error
        other = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
        if other:
            raise UserError(f"{out}: holds predictions with other {' and '.join(other)}; choose another folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not from raydelta predict; choose a new folder")
    else:
        write_atomically(manifest, json.dumps(settings, indent=1))


def _follow(results: Iterator[Frame], total: int) -> tuple[int, list[tuple[str, str]]]:
    """Show progress; images that were written, and what was skipped."""
    progress, start, done, images, skipped = Progress("predict"), time.monotonic(), 0, 0, list[tuple[str, str]]()
    for frame in results:
        done += frame["last"]
        images += bool(frame["mask"])
        if frame["reason"]:
            skipped.append((frame["file"], frame["reason"]))
        progress.update(done, total, f"inputs, {images / (time.monotonic() - start):.1f} images/s")
    progress.finish(f"{images} images, {len(skipped)} inputs skipped")
    return images, skipped


def predict_here(network: Deployed, items: Sequence[Input], task: Task) -> Iterator[Frame]:
    """All stages in this process."""
    segmenter = Segmenter(task, network)
    with ThreadPoolExecutor(THREADS) as files:
        for start in range(0, len(items), task.batch):
            chunk = items[start : start + task.batch]
            frames = list(files.map(lambda item: next(read_frames_of(item, task)), chunk))
            yield from files.map(partial(write_frame, task=task), segmenter.segment(frames))


def _predict_on_ray(items: Sequence[Input], task: Task) -> Iterator[Frame]:
    """The same stages side by side on the cluster."""
    # Its core writes to stderr for every pool of actors, and when it is interrupted, what no user can act on.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ensure_ray()
    import ray

    results = pipeline(items, task, Segmenter)
    try:
        yield from results.iter_rows()
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None


def pipeline(items: Sequence[Input], task: Task, segmenter: type) -> "Dataset":
    """Inputs → their frames, written, without their pixels. Nothing runs before it is iterated over.

    Args:
        segmenter: takes the task; its instances take and return batches of frames, and live on a GPU each (or a CPU).
    """
    import ray

    blocks = min(BLOCKS, -(-len(items) // task.batch))
    rows = ray.data.from_items([item._asdict() for item in items], override_num_blocks=blocks)
    return (
        rows.flat_map(partial(read_row, task=task), num_cpus=TASK_CPUS)
        .map_batches(segmenter, fn_constructor_args=(task,), batch_size=task.batch, **actor_pool(blocks))
        .map(partial(write_frame, task=task), num_cpus=TASK_CPUS)
    )


class Segmenter:
    """The stage between reading and writing: an actor with the model."""

    def __init__(self, task: Task, network: Deployed | None = None) -> None:
        if network is None:
            torch.set_num_threads(1)  # there is an actor for every CPU
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = (network or read_network(task.run, task.method)).to(self.device)
        self.task, self.keeps_image = task, "overlay" in task.kinds

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list]]:
        names = list(batch)
        frames: Any = [dict(zip(names, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        # One by one: a column ends at 2 GiB. Computed here, in the actor's one thread, not where they are taken.
        return ({name: [value] for name, value in frame.items()} for frame in self.segment(frames))

    def segment(self, frames: Sequence[Frame]) -> list[Frame]:
        """The frames with their masks."""
        full = [frame for frame in frames if frame["image"]]
        images = [
            torch.from_numpy(np.frombuffer(frame["image"], np.uint8).reshape(frame["height"], frame["width"], 3).copy())
            for frame in full
        ]
        masks = iter(segment(self.network, images, self.task.window, self.task.batch))
        return [
            frame
            if not frame["image"]
            else frame
            | {"mask": next(masks).cpu().numpy().tobytes(), "image": frame["image"] if self.keeps_image else b""}
            for frame in frames
        ]


def _write_skipped(out: Path, skipped: Sequence[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *skipped])
    write_atomically(out / "skipped.csv", text.getvalue())
