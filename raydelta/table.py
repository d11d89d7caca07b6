"""From finished trainings to the rows of the table and the pictures: each model on the test images, over Ray or here.

A run reads its test labels here and, at its end, in the gallery. Not here: what a row looks like, and its figures
(evaluation).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from raydelta.data.augment import to_float, to_uint8
from raydelta.data.importers import STAND_IN
from raydelta.data.prepare import evaluation_split, unseen_sequences
from raydelta.data.shards import list_ids, read_manifest
from raydelta.data.streams import load_images
from raydelta.evaluation import Row, class_ious, confusion_matrix, mean_iou, subset_means
from raydelta.methods import Job, label_ids, load_model
from raydelta.pictures import colourise, strip
from raydelta.progress import Progress
from raydelta.recipes import ENSEMBLES
from raydelta.stages import read_stage
from raydelta.workers import find_place, get_or_cause


def evaluate_on_ray(jobs: list[tuple[str, Job]], gpus: float, progress: Progress) -> list[Row]:
    """The rows of the table: every method's model on the test images, side by side on the cluster.

    Test labels are read here and in the pictures, after everything is trained and chosen.
    """
    import ray

    evaluate = ray.remote(num_cpus=1, num_gpus=gpus)(evaluate_job)
    distinct = {job.directory: (method, job) for method, job in jobs}
    pending = {evaluate.remote(method, job): directory for directory, (method, job) in distinct.items()}
    done: dict[Path, list[Row]] = {}
    while pending:
        ready, _ = ray.wait(list(pending), timeout=0.5)
        for reference in ready:
            done[pending.pop(reference)] = get_or_cause(reference)
        progress.update(len(done), len(distinct), "models")
    return [row.model_copy(update={"method": method}) for method, job in jobs for row in done[job.directory]]


def evaluate_job(method: str, job: Job) -> list[Row]:
    """One model on the labelled test images, here; unseen sequences also alone, the expert also on synthetic ones."""
    place = find_place(job.config)
    data = job.config.data
    model = load_model(job, place)
    domains = [("synthetic", data.synthetic)] if job.kind == "expert" else []
    rows = []
    for domain, uri in [*domains, ("real", data.real)]:
        manifest = read_manifest(uri)
        split = evaluation_split(manifest)
        if split is None:
            continue
        samples = [sample for sample in list_ids(uri, split) if sample.labelled]
        subsets = {f"synthetic {split}" if domain == "synthetic" else split: [sample.id for sample in samples]}
        unseen = set(unseen_sequences(uri, split)) if domain == "real" else set()
        if unseen:
            names = ", ".join(sorted(unseen)) if len(unseen) <= 2 else "unseen sequences"
            subsets[f"{split} {names}"] = [sample.id for sample in samples if sample.sequence in unseen]
        for title, ids in subsets.items():
            images = load_images(uri, split, (data.width, data.height), ids=ids)
            classes = manifest.taxonomy.classes
            confusion = confusion_matrix(model.predict, images, len(classes), place)
            ious = class_ious(confusion)
            train, validation = count_labels(job)
            row = Row(
                method=method,
                labels_train=train,
                labels_val=validation,
                seed=job.config.seed,
                real=read_manifest(data.real).name,
                split=title,
                device_hours=device_hours(job),
                start=job.recipe.start if job.recipe else "expert",
                pretraining=job.config.segmenter.weights,
                miou=mean_iou(ious),
                per_class=dict(zip(classes, ious, strict=True)),
                means=subset_means(dict(zip(classes, ious, strict=True))),
                images=len(ids),
                stage=None if job.kind in ENSEMBLES else job.directory.name,
                confusion=confusion.tolist(),
            )
            rows.append(row)
    return rows


def count_labels(job: Job) -> tuple[int, int]:
    """What a row cost: labels trained on, and labels by which settings were chosen (of translators alone)."""
    if job.kind == "expert":
        return 0, 0
    trained = {name for each in [*job.parents, job] for name in label_ids(each)[0]}
    chosen = label_ids(job)[1] if any(each.kind == "translator" for each in [*job.parents, job]) else []
    return len(trained), len(chosen)


def device_hours(job: Job) -> float:
    """Hours of one device for the row: its own training and all that it builds on, the expert included."""
    built_on = {each.directory for each in [*job.parents, job]} | ({job.expert} if job.expert else set())
    stages = [read_stage(directory) for directory in built_on]  # an ensemble has no stage of its own
    return sum(stage["metrics"]["device_seconds"] for stage in stages if stage is not None) / 3600


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
    images = load_images(data.real, split, (data.width, data.height), ids=chosen)
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


def method_of(job: Job) -> str:
    """What the table calls a job's row."""
    if job.kind == "expert":
        return "synthetic only"
    unguided = job.kind == "translator" and job.config.guidance.weight == 0
    name = {"translator": "unguided" if unguided else "guided"}.get(job.kind, job.kind)
    return f"{name}, shuffled labels" if job.config.labels.shuffle and not unguided else name
