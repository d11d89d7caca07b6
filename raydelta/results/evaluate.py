"""Evaluation of trained models on the labelled test images: the rows of the table."""

from pathlib import Path

from raydelta.compute.device import Place, find_place
from raydelta.compute.tasks import get_or_cause, start_remote
from raydelta.config import LabelCells, SegmenterConfig
from raydelta.data.labels import choose_labels, count_bought
from raydelta.data.prepare import evaluation_split, unseen_sequences
from raydelta.data.price import Price, price_of
from raydelta.data.shards import Domain, list_ids, read_manifest
from raydelta.data.streams import load_images
from raydelta.errors import UserError
from raydelta.progress import Progress
from raydelta.results.row import Row
from raydelta.results.runs import resolve_run
from raydelta.results.table import write_table
from raydelta.training.job import Job, check_trust, label_ids, read_job
from raydelta.training.metrics import class_ious, confusion_matrix, mean_iou, subset_means
from raydelta.training.stage import read_stage
from raydelta.training.trained import Model, load_model


def evaluate_on_ray(jobs: list[tuple[str, Job]], gpus: float, progress: Progress) -> list[Row]:
    """The rows of the table: every method's model on the test images, side by side on the cluster.

    Test labels are read here and in the pictures, after everything is trained and chosen.
    """
    import ray

    distinct = {job.directory: (method, job) for method, job in jobs}
    pending = {
        start_remote(evaluate_job, method, job, gpus=gpus): directory for directory, (method, job) in distinct.items()
    }
    done: dict[Path, list[Row]] = {}
    while pending:
        ready, _ = ray.wait(list(pending), timeout=0.5)
        for reference in ready:
            done[pending.pop(reference)] = get_or_cause(reference)
        progress.update(len(done), len(distinct), "models")
    return [row.model_copy(update={"method": method}) for method, job in jobs for row in done[job.directory]]


def evaluate(run: str | Path, trust: bool = False) -> list[Row]:
    """The test table of a finished training; ``table.json`` and ``table.csv`` are written into its directory.

    Args:
        run: directory, address or name of the training, or ``latest``.
        trust: open its data sets also at addresses that no command of yours has named.

    Raises:
        UserError: no finished training, or its photographs have no labelled test or val split.
    """
    job = read_job(resolve_run(run))
    check_trust(job, trust)
    rows = evaluate_job(method_of(job), job)
    if not rows:
        raise UserError(f"{job.config.data.real}: has no labelled test or val split to evaluate on")
    write_table(job.directory, rows)
    return rows


def evaluate_job(method: str, job: Job) -> list[Row]:
    """One model on the labelled test images, here; unseen sequences also alone, the expert also on synthetic ones."""
    place = find_place(job.config)
    data = job.config.data
    model = load_model(job, place)
    domains: list[tuple[Domain, str]] = [("synthetic", data.synthetic)] if job.kind == "expert" else []
    price = price_labels(job)
    rows: list[Row] = []
    on_validation = validation_miou(job, model, place)
    train, validation = count_labels(job)
    domains.append(("real", data.real))
    for domain, uri in domains:
        manifest = read_manifest(uri)
        split = evaluation_split(manifest)
        if split is None:
            continue
        samples = [sample for sample in list_ids(uri, split) if sample.labelled]
        subsets = {split: [sample.id for sample in samples]}
        unseen = set(unseen_sequences(uri, split)) if domain == "real" else set()
        if unseen:
            names = ", ".join(sorted(unseen)) if len(unseen) <= 2 else "unseen sequences"
            subsets[f"{split} {names}"] = [sample.id for sample in samples if sample.sequence in unseen]
        for title, ids in subsets.items():
            images = load_images(uri, split, data.size, ids=ids)
            classes = manifest.taxonomy.classes
            confusion = confusion_matrix(model.predict, images, len(classes), place)
            ious = class_ious(confusion)
            row = Row(
                method=method,
                labels_train=train,
                labels_val=validation,
                seed=job.config.seed,
                real=read_manifest(data.real).name,
                domain=domain,
                split=title,
                device_hours=device_hours(job),
                start=job.recipe.start if job.recipe.section == "student" else "expert",
                pretraining=_pretraining(job.config.segmenter),
                miou=mean_iou(ious),
                validation=on_validation,
                per_class=dict(zip(classes, ious, strict=True)),
                means=subset_means(dict(zip(classes, ious, strict=True))),
                images=len(ids),
                pixels=price.pixels if price else None,
                clicks=price.clicks if price else None,
                stage=job.directory.name,
                confusion=confusion.tolist(),
            )
            rows.append(row)
    return rows


def validation_miou(job: Job, model: Model, place: Place) -> float | None:
    """mIoU in percent on the validation labels of the job's seed, which no training has seen; None: there are none."""
    data, ids = job.config.data, _validation_ids(job)
    if not ids:
        return None
    images = load_images(data.real, "train", data.size, ids=ids)
    confusion = confusion_matrix(model.predict, images, len(read_manifest(data.real).taxonomy), place)
    return mean_iou(class_ious(confusion))


def _validation_ids(job: Job) -> list[str]:
    if job.kind != "expert":
        return label_ids(job)[1]
    config = job.config  # the expert takes no labels, so it has no list of its own
    labelled = [(name, sequence) for name, sequence, known in list_ids(config.data.real, "train") if known]
    if config.labels.validation > len(labelled):
        return []
    return choose_labels(labelled, config.labels, config.seed, budget=0)[1]


def count_labels(job: Job) -> tuple[int, int]:
    """What a row cost: labels trained on, and labels by which settings were chosen (of translators alone).

    Bought cells count by their share of the image, rounded to whole labels together.
    """
    if job.kind == "expert":
        return 0, 0
    trained = trained_on(job)
    chosen = label_ids(job)[1] if any(each.kind == "translator" for each in [*job.parents, job]) else []
    return round(count_bought(trained, _cells(job))), len(chosen)


def trained_on(job: Job) -> list[str]:
    """The ids of the labels that it and all that it builds on were trained on."""
    return sorted({name for each in [*job.parents, job] for name in label_ids(each)[0]})


def price_labels(job: Job) -> Price | None:
    """What the labels that it was trained on cost, by the truth; None where it takes all that there are."""
    if job.kind == "expert":
        return Price(0, 0, 0)
    if job.budget < 0:
        return None
    ids, data = trained_on(job), job.config.data
    if not ids:
        return Price(0, 0, 0)
    labels = load_images(data.real, "train", data.size, ids=ids).labels
    assert labels is not None
    cells = _cells(job)
    return price_of(dict(zip(ids, labels, strict=True)), cells.images if cells else {}, cells.grid if cells else (1, 1))


def _cells(job: Job) -> LabelCells | None:
    """The cells that were bought, where its labels are not whole."""
    ids = job.config.labels.ids
    return ids.cells if ids is not None and job.budget >= 0 else None


def device_hours(job: Job) -> float:
    """Hours of one device for the row: its own training and all that it builds on, the expert included."""
    built_on = {each.directory for each in [*job.parents, job]} | ({job.expert} if job.expert else set())
    stages = [read_stage(directory) for directory in built_on]  # an ensemble has no stage of its own
    return sum(stage["metrics"]["device_seconds"] for stage in stages if stage is not None) / 3600


def _pretraining(segmenter: SegmenterConfig) -> str | None:
    """The pre-trained weights that its encoder began with, in words; a file by its name, as paths stay private."""
    name = segmenter.weights_file.name if segmenter.weights_file is not None else segmenter.weights
    return None if name is None else f"{segmenter.encoder}, {name}"


def method_of(job: Job) -> str:
    """What the table calls a job's row."""
    if job.kind == "expert":
        return "synthetic only"
    unguided = job.kind == "translator" and job.config.guidance.weight == 0
    taught = job.config.guidance.teacher is not None
    twice = job.config.self_training.views == 2
    names = {
        "translator": "unguided" if unguided else "taught" if taught else "guided",
        "mean teacher": "mean teacher, two views" if twice else "mean teacher",
    }
    name = names.get(job.kind, job.kind)
    return f"{name}, shuffled labels" if job.config.labels.shuffle and not unguided else name
