"""The pictures of a report: a few test photographs with what a model makes of them, as data URIs for a web page.

They are for looking at, and nothing is chosen by them. Drawn on the cluster after a sweep, or here.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raydelta.compute.device import find_place
from raydelta.compute.tasks import get_or_cause
from raydelta.data.augment import to_float, to_uint8
from raydelta.data.prepare import evaluation_split
from raydelta.data.shards import list_ids, read_manifest
from raydelta.data.simulator.dataset import STAND_IN
from raydelta.data.streams import load_images
from raydelta.data.taxonomy import IGNORE
from raydelta.errors import UserError
from raydelta.results.evaluate import method_of
from raydelta.results.pictures import Pixels, colourise, mark_errors, strip
from raydelta.training.job import Job
from raydelta.training.metrics import class_ious, mean_iou
from raydelta.training.trained import load_model

COUNT = 24
LARGEST = 384  # pixels of a picture's width
BUDGET = 2_500_000  # characters of all pictures together; a page stays below 5 MB with them
SPECK = 0.01  # a class with a smaller share of an image's pixels is not called its worst


@dataclass(frozen=True)
class Picture:
    """A test photograph and what became of it."""

    id: str
    sequence: str
    miou: float  # percent, over the classes in its truth or prediction
    worst: str  # the class in its truth with the lowest IoU
    worst_iou: float
    views: dict[str, str]  # real, translated, prediction, truth, error → data URI


@dataclass(frozen=True)
class Gallery:
    """Pictures and the colours of the classes in them."""

    pictures: list[Picture]
    colours: dict[str, tuple[int, int, int]]
    size: tuple[int, int]  # width and height of every view
    of: int  # images that there are


def draw_gallery(job: Job, gpus: float, count: int = COUNT) -> Gallery:
    """``draw_gallery_here`` as a task of the cluster."""
    import ray

    return get_or_cause(ray.remote(num_cpus=1, num_gpus=gpus)(draw_gallery_here).remote(job, count))


def draw_gallery_here(job: Job, count: int = COUNT) -> Gallery:
    """Up to ``count`` labelled test photographs, evenly spaced, through the model of a finished training.

    Raises:
        UserError: the photographs are gone, or have no labelled split to evaluate on.
    """
    place, data = find_place(job.config), job.config.data
    manifest = read_manifest(data.real)
    split = evaluation_split(manifest)
    if split is None:
        raise UserError(f"{data.real}: has no labelled test or val split to draw pictures from")
    samples = [sample for sample in list_ids(data.real, split) if sample.labelled]
    chosen = samples[:: -(-len(samples) // count)]
    images = load_images(data.real, split, data.size, ids=[sample.id for sample in chosen])
    assert images.labels is not None
    model, classes, pictures = load_model(job, place), manifest.taxonomy.classes, []
    for index, sample in enumerate(chosen):
        photograph, truth = images.pixels[index].transpose(1, 2, 0), images.labels[index]
        with torch.inference_mode():
            pixels = to_float(torch.from_numpy(images.pixels[index : index + 1]).to(place.device))
            views = {"real": photograph}
            if model.translate is not None:
                views["translated"] = to_uint8(model.translate(pixels))[0].permute(1, 2, 0).cpu().numpy()
            prediction = model.predict(pixels).argmax(1)[0].byte().cpu().numpy()
        views["prediction"] = colourise(prediction, manifest.taxonomy)
        views["truth"] = colourise(truth, manifest.taxonomy)
        views["error"] = mark_errors(photograph, prediction, truth)
        counted = truth != IGNORE
        cells = truth[counted].astype(int) * len(classes) + prediction[counted]
        confusion = np.bincount(cells, minlength=len(classes) ** 2).reshape(len(classes), -1)
        ious, shares = class_ious(confusion), confusion.sum(1) / max(1, confusion.sum())
        known = [(iou, name) for iou, name, share in zip(ious, classes, shares, strict=True) if share >= SPECK]
        worst_iou, worst = min((iou or 0.0, name) for iou, name in known) if known else (0.0, "none")
        encoded = {name: _data_uri(view, name in ("real", "translated")) for name, view in views.items()}
        pictures.append(Picture(sample.id, sample.sequence, mean_iou(ious), worst, worst_iou, encoded))
    while len(pictures) > 1 and sum(len(uri) for picture in pictures for uri in picture.views.values()) > BUDGET:
        pictures = pictures[::2]
    colours = dict(zip(classes, manifest.taxonomy.palette, strict=True))
    return Gallery(pictures, colours, _fitting(*data.size), len(samples))


def _fitting(width: int, height: int) -> tuple[int, int]:
    shrink = min(1.0, LARGEST / width)
    return round(width * shrink), round(height * shrink)


def _data_uri(pixels: Pixels, photograph: bool) -> str:
    """WebP: a photograph small, a mask exact."""
    height, width = pixels.shape[:2]
    resampling = Image.Resampling.LANCZOS if photograph else Image.Resampling.NEAREST
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(_fitting(width, height), resampling)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=80, lossless=not photograph)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def draw_strips(jobs: list[Job], path: Path, gpus: float, count: int = 6) -> None:
    """real | translated | predictions | truth for a few test images, drawn on the cluster."""
    import ray

    get_or_cause(ray.remote(num_cpus=1, num_gpus=gpus)(draw_strips_here).remote(jobs, path, count))


def draw_trainings(jobs: Mapping[str, Job], folder: Path, gpus: float, count: int = 3) -> dict[str, Path]:
    """``draw_strips`` of each job alone, side by side on the cluster: name → picture, in the order of the jobs."""
    import ray

    draw = ray.remote(num_cpus=1, num_gpus=gpus)(draw_strips_here)
    paths = {name: folder / f"{name}.png" for name in jobs}
    for reference in [draw.remote([job], paths[name], count) for name, job in jobs.items()]:
        get_or_cause(reference)
    return paths


def draw_strips_here(jobs: list[Job], path: Path, count: int) -> None:
    """``draw_strips`` in this process."""
    place, data = find_place(jobs[0].config), jobs[0].config.data
    manifest = read_manifest(data.real)
    split = evaluation_split(manifest)
    if split is None:
        return
    names = [sample.id for sample in list_ids(data.real, split) if sample.labelled]
    chosen = names[:: max(1, len(names) // count)][:count]
    images = load_images(data.real, split, data.size, ids=chosen)
    assert images.labels is not None
    first = "stand-in" if manifest.name == STAND_IN else "real"
    columns: dict[str, np.ndarray] = {first: images.pixels.transpose(0, 2, 3, 1)}
    pixels = to_float(torch.from_numpy(images.pixels).to(place.device))
    with torch.inference_mode():
        for job in jobs:
            title, model = method_of(job), load_model(job, place)
            if model.translate is not None:
                columns[f"translated, {title}"] = to_uint8(model.translate(pixels)).permute(0, 2, 3, 1).cpu().numpy()
            columns[f"prediction, {title}"] = model.predict(pixels).argmax(1).byte().cpu().numpy()
    columns["truth"] = images.labels
    painted = [c if c.ndim == 4 else [colourise(mask, manifest.taxonomy) for mask in c] for c in columns.values()]
    strip([[column[index] for column in painted] for index in range(len(chosen))], list(columns), path)
