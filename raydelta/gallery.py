"""The pictures of a report: a few test photographs with what a model makes of them, as data URIs for a web page.

They are for looking at, and nothing is chosen by them. Drawn on the cluster after a sweep, or here. Not here: how masks
become colours (pictures), and the page (report).
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from raydelta.data.augment import to_float, to_uint8
from raydelta.data.prepare import evaluation_split
from raydelta.data.shards import list_ids, read_manifest
from raydelta.data.streams import load_images
from raydelta.errors import UserError
from raydelta.evaluation import class_ious, mean_iou
from raydelta.methods import Job, load_model
from raydelta.pictures import Pixels, colourise, mark_errors
from raydelta.taxonomy import IGNORE
from raydelta.workers import find_place, get_or_cause

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
    images = load_images(data.real, split, (data.width, data.height), ids=[sample.id for sample in chosen])
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
    return Gallery(pictures, colours, _fitting(data.width, data.height), len(samples))


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
