"""Pictures of test photographs with what models make of them: the gallery of a report, and strips.

They are for looking at, and nothing is chosen by them. Drawn on the cluster after a sweep, or in this process.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raydelta.compute.device import find_place
from raydelta.compute.tasks import get_or_cause, run_remote, start_remote
from raydelta.data.pixels import to_float, to_uint8
from raydelta.data.prepare import evaluation_split
from raydelta.data.shards import Manifest, Sample, list_ids, read_manifest
from raydelta.data.simulator.dataset import STAND_IN
from raydelta.data.streams import load_images
from raydelta.data.taxonomy import IGNORE
from raydelta.errors import UserError
from raydelta.results.evaluate import method_of
from raydelta.results.page import Gallery, Picture, Reading
from raydelta.results.pictures import Pixels, colourise, mark_errors, strip
from raydelta.training.job import Job
from raydelta.training.metrics import class_ious, mean_iou
from raydelta.training.trained import load_model

COUNT = 24
LARGEST = 384  # pixels of a picture's width
BUDGET = 2_500_000  # characters of all pictures together; a page stays below 5 MB with them
SPECK = 0.01  # a class with a smaller share of an image's pixels is not called its worst


@dataclass(frozen=True)
class Photographs:
    """Labelled test photographs, evenly spaced over the split."""

    manifest: Manifest
    samples: list[Sample]
    pixels: Pixels  # [N, 3, H, W]
    truths: Pixels  # [N, H, W]
    of: int  # photographs of the split that have labels


@dataclass(frozen=True)
class View:
    """One photograph as a model sees it."""

    translated: Pixels | None  # [H, W, 3]; None: the model does not translate
    prediction: Pixels  # class ids [H, W]


def draw_gallery(jobs: Mapping[str, Job], gpus: float, count: int = COUNT) -> Gallery:
    """``draw_gallery_here`` as a task of the cluster."""
    return run_remote(draw_gallery_here, jobs, count, gpus=gpus)


def draw_gallery_here(jobs: Mapping[str, Job], count: int = COUNT) -> Gallery:
    """Up to ``count`` test photographs through the models of finished trainings.

    Args:
        jobs: name → job, at least one; all of the same photographs.

    Raises:
        UserError: the photographs are gone, or have no labelled split to evaluate on.
    """
    first = next(iter(jobs.values()))
    photographs = _photographs(first, count)
    if photographs is None:
        raise UserError(f"{first.config.data.real}: has no labelled test or val split to draw pictures from")
    taxonomy = photographs.manifest.taxonomy
    readings = [
        [_read(photographs, index, view) for index, view in enumerate(_views(job, photographs))]
        for job in jobs.values()
    ]
    pictures = [
        Picture(
            sample.id,
            sample.sequence,
            real=_data_uri(photographs.pixels[index].transpose(1, 2, 0), photograph=True),
            truth=_data_uri(colourise(photographs.truths[index], taxonomy), photograph=False),
            readings=[of_job[index] for of_job in readings],
        )
        for index, sample in enumerate(photographs.samples)
    ]
    while len(pictures) > 1 and sum(map(_characters, pictures)) > BUDGET:
        pictures = pictures[::2]
    colours = dict(zip(taxonomy.classes, taxonomy.palette, strict=True))
    height, width = photographs.truths.shape[1:]
    return Gallery(list(jobs), pictures, colours, _fitting(width, height), photographs.of)


def _photographs(job: Job, count: int) -> Photographs | None:
    """Up to ``count`` labelled test photographs, evenly spaced; None if the data set has no labelled split to test."""
    data = job.config.data
    manifest = read_manifest(data.real)
    split = evaluation_split(manifest)
    if split is None:
        return None
    samples = [sample for sample in list_ids(data.real, split) if sample.labelled]
    chosen = samples[:: max(1, len(samples) // count)][:count]
    images = load_images(data.real, split, data.size, ids=[sample.id for sample in chosen])
    assert images.labels is not None
    return Photographs(manifest, chosen, images.pixels, images.labels, len(samples))


def _views(job: Job, photographs: Photographs) -> Iterator[View]:
    """Every photograph, one by one, through the model of a finished job."""
    place = find_place(job.config)
    model = load_model(job, place)
    for pixels in photographs.pixels:
        with torch.inference_mode():
            image = to_float(torch.from_numpy(pixels[None]).to(place.device))
            translated = None
            if model.translate is not None:
                translated = to_uint8(model.translate(image))[0].permute(1, 2, 0).cpu().numpy()
            prediction = model.predict(image).argmax(1)[0].byte().cpu().numpy()
        yield View(translated, prediction)


def _read(photographs: Photographs, index: int, view: View) -> Reading:
    taxonomy, truth = photographs.manifest.taxonomy, photographs.truths[index]
    views = {} if view.translated is None else {"translated": _data_uri(view.translated, photograph=True)}
    views["prediction"] = _data_uri(colourise(view.prediction, taxonomy), photograph=False)
    marked = mark_errors(photographs.pixels[index].transpose(1, 2, 0), view.prediction, truth)
    views["error"] = _data_uri(marked, photograph=False)
    counted, classes = truth != IGNORE, taxonomy.classes
    cells = truth[counted].astype(int) * len(classes) + view.prediction[counted]
    confusion = np.bincount(cells, minlength=len(classes) ** 2).reshape(len(classes), -1)
    ious, shares = class_ious(confusion), confusion.sum(1) / max(1, confusion.sum())
    known = [(iou, name) for iou, name, share in zip(ious, classes, shares, strict=True) if share >= SPECK]
    worst_iou, worst = min((iou or 0.0, name) for iou, name in known) if known else (0.0, "none")
    return Reading(mean_iou(ious), worst, worst_iou, views)


def _characters(picture: Picture) -> int:
    views = [uri for reading in picture.readings for uri in reading.views.values()]
    return sum(map(len, [picture.real, picture.truth, *views]))


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
    """``draw_strips_here`` as a task of the cluster."""
    run_remote(draw_strips_here, jobs, path, count, gpus=gpus)


def draw_trainings(jobs: Mapping[str, Job], folder: Path, gpus: float, count: int = 3) -> dict[str, Path]:
    """``draw_strips`` of each job alone, side by side on the cluster: name → picture, in the order of the jobs."""
    paths = {name: folder / f"{name}.png" for name in jobs}
    started = [start_remote(draw_strips_here, [job], paths[name], count, gpus=gpus) for name, job in jobs.items()]
    for reference in started:
        get_or_cause(reference)
    return paths


def draw_strips_here(jobs: list[Job], path: Path, count: int) -> None:
    """A PNG of a few test photographs, a line each: real | translated | predictions | truth. None without labels."""
    photographs = _photographs(jobs[0], count)
    if photographs is None:
        return
    manifest = photographs.manifest
    first = "stand-in" if manifest.name == STAND_IN else "real"
    columns: dict[str, list[Pixels]] = {first: list(photographs.pixels.transpose(0, 2, 3, 1))}
    for job in jobs:
        title, views = method_of(job), list(_views(job, photographs))
        translated = [view.translated for view in views if view.translated is not None]
        if translated:
            columns[f"translated, {title}"] = translated
        columns[f"prediction, {title}"] = [colourise(view.prediction, manifest.taxonomy) for view in views]
    columns["truth"] = [colourise(truth, manifest.taxonomy) for truth in photographs.truths]
    strip(list(zip(*columns.values(), strict=True)), list(columns), path)
