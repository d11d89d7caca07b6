"""The model card of an exported folder: what it was trained on, what it scored, how it is called, what it cannot.

Everything in it is read from the run and the tables beside it; nothing is computed again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raydelta.deploy.network import Deployed
from raydelta.recipes import short_name
from raydelta.results.evaluate import count_labels, method_of
from raydelta.results.row import Row
from raydelta.results.table import read_table
from raydelta.storage.files import without_secrets, write_atomically
from raydelta.training.job import Job
from raydelta.training.stage import read_stage
from raydelta.version import __version__

LOAD = """\
import raydelta
masks = raydelta.load("FOLDER")("photo.jpg")     # a path, Pillow image, uint8 array or tensor; .ids, .classes
masks.save("overlay.png")"""
PROGRAMS = """\
import onnxruntime                               # images: uint8 (N, H, W, 3) RGB
session = onnxruntime.InferenceSession("model.onnx")
ids, logits = session.run(None, {"images": images})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])

import torch
ids, logits = torch.export.load("model.pt2").module()(torch.from_numpy(images))"""


def write_card(job: Job, model: Deployed, checks: Sequence[Mapping[str, Any]], images: str, path: Path) -> None:
    """Write the card of a job's model.

    Args:
        checks: the fields of each ``export.Agreement``; none if nothing but the weights was written.
        images: what the checks were made on, in words.
    """
    config, data = model.config, job.config.data
    train, validation = count_labels(job)
    parameters = sum(weight.numel() for weight in model.parameters())
    classes = "\n".join(f"| {number} | {name} |" for number, name in enumerate(config.taxonomy.classes))
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(job), sort_keys=False)}---",
        f"# {config.run}",
        f"Semantic segmentation of photographs: *{method_of(job)}*, made by raydelta {__version__}. "
        f"{parameters:,} parameters, fp32.",
        "## Use",
        "Input: RGB, 0 to 255, any number and size of upright photographs; resizing and scaling are inside. Output: "
        "the id of the likeliest class of every pixel.",
        f"```python\n{LOAD}" + (f"\n\n{PROGRAMS}" if checks else "") + "\n```",
        "## Data",
        _data_table(job),
        f"Labelled photographs: {train} to train, {validation} to validate (to choose settings; part of the cost).",
        "## Figures",
        _figures(job),
        "## Classes",
        f"Taxonomy {config.taxonomy.name}.",
        f"| id | class |\n| --- | --- |\n{classes}",
        *(_checks(checks, images) if checks else ()),
        "## Limits",
        f"- Trained on images of {data.width}×{data.height} pixels; a photograph is resized to that height in its own "
        "aspect ratio. Things that are tiny at that size are not seen.\n"
        "- Figures hold for photographs like those of the test split. Another camera, city, season or weather may do "
        "worse, and nothing in the output says so.\n"
        "- Every pixel gets a class, also what belongs to none of them.\n"
        "- Not for decisions on which safety depends.",
        "## Licence",
        "The code is raydelta's, Apache-2.0. Whether these weights may be used or passed on depends on the licences of "
        "the data sets above, which raydelta does not know: please check.",
    ]
    write_atomically(path, "\n\n".join(sections) + "\n")


FRONT = """\
import onnxruntime                               # images: uint8 (N, H, W, 3) RGB
session = onnxruntime.InferenceSession("preprocessor.onnx")
rgb, normalised = session.run(None, {"images": images})

import torch
rgb, normalised = torch.export.load("preprocessor.pt2").module()(torch.from_numpy(images))
scores = your_expert(normalised)"""


def write_preprocessor_card(
    job: Job, model: Deployed, checks: Sequence[Mapping[str, Any]], images: str, path: Path
) -> None:
    """Write the card of what goes in front of an expert; arguments as of ``write_card``."""
    config, data = model.config, job.config.data
    train, validation = count_labels(job)
    sections = [
        f"# Preprocessor of {config.run}",
        f"Photographs in the look of the synthetic images, for the expert that it was trained in front of "
        f"(*{method_of(job)}*), made by raydelta {__version__}. The expert itself is not in this folder.",
        "## Use",
        f"Input: RGB, 0 to 255, any number and size of upright photographs. They are resized to a height of "
        f"{data.height} pixels or a little more, in their own aspect ratio. Output: `rgb`, uint8 (N, h, w, 3), and the "
        "same as `normalised`, float (N, 3, h, w), as the expert expects it.",
        f"```python\n{FRONT}\n```",
        "## Data",
        _data_table(job),
        f"Labelled photographs: {train} to train, {validation} to validate (to choose settings; part of the cost).",
        "## Figures",
        "Of the preprocessor and the expert together.",
        _figures(job),
        *_checks(checks, images, "RGB values that are within 1 of those of the model in torch", "images", "same rgb"),
        "## Limits",
        "- It was trained for this expert. In front of another one it may do harm.\n"
        "- Figures hold for photographs like those of the test split.\n"
        "- Not for decisions on which safety depends.",
        "## Licence",
        "The code is raydelta's, Apache-2.0. Whether these weights may be used or passed on depends on the licences of "
        "the data sets above, which raydelta does not know: please check.",
    ]
    write_atomically(path, "\n\n".join(sections) + "\n")


def _checks(
    checks: Sequence[Mapping[str, Any]],
    images: str,
    share: str = "pixels that get the same id as from the model in torch",
    floats: str = "logits",
    same: str = "same ids",
) -> list[str]:
    lines = "\n".join(
        f"| {c['model']} | {c['width']}×{c['height']} | {c['agreement']:.3%} | {c['deviation']:.1e} | "
        f"{c['seconds']:.3f} | {c['torch_seconds']:.3f} |"
        for c in checks
    )
    return [
        "## Check of the export",
        f"On {images}. Share of the {share}, by how much {floats} differ at most, and median seconds of one image on "
        "one CPU thread of the machine that exported it.",
        f"| file | size | {same} | {floats} | seconds | torch |\n| --- | --- | --- | --- | --- | --- |\n{lines}",
    ]


def _front_matter(job: Job) -> dict[str, Any]:
    """What a model hub reads at the head of a card."""
    head: dict[str, Any] = {
        "library_name": "raydelta",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "onnx", short_name(method_of(job))],
        "license": "other",
        "license_name": "see-the-data-sets",
    }
    rows = find_rows(job)
    if rows:
        results = [
            {
                "task": {"type": "image-segmentation"},
                "dataset": {"name": row.real, "type": short_name(row.real), "split": row.split},
                "metrics": [{"type": "mean_iou", "value": round(row.miou / 100, 4)}],
            }
            for row in rows
        ]
        head["model-index"] = [{"name": job.directory.name, "results": results}]
    return head


def _data_table(job: Job) -> str:
    lines = ["| data set | domain | split | images | labelled |", "| --- | --- | --- | --- | --- |"]
    stage = read_stage((job.members[-1] if job.recipe.members else job).directory) or {}
    for domain in ("synthetic", "real"):
        described = stage.get("data", {}).get(domain)
        if described is None:  # a stage of an older version, or an expert, which knows no photographs
            name = without_secrets(getattr(job.config.data, domain)).rpartition("/")[2]
            lines.append(f"| {name} | {domain} | | | |")
            continue
        for name, split in described["splits"].items():
            cells = (described["name"], described["domain"], name, split["images"], split["labelled"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def find_rows(job: Job) -> list[Row]:
    """The job's rows in its own table or in that of a sweep beside it."""
    for table in [job.directory / "table.json", *sorted(job.directory.parent.glob("tune-*/table.json"))]:
        rows = read_table(table.parent) if table.exists() else []
        own = [row for row in rows if row.stage == job.directory.name]
        if own:  # a replay has the same training as a row of several strategies
            return [row for row in own if row.method == own[0].method]
    return []


def _figures(job: Job) -> str:
    rows = find_rows(job)
    if not rows:
        return "Not evaluated: `raydelta evaluate RUN` before `raydelta export` puts them here."
    lines = ["| photographs | split | images | mIoU % |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.real} | {row.images_of} | {row.images} | {row.miou:.1f} |" for row in rows]
    present = {name: iou for name, iou in rows[0].per_class.items() if iou is not None}
    each = ", ".join(f"{name} {iou:.0f}" for name, iou in present.items())
    return "\n".join(lines) + f"\n\nIoU of each class on {rows[0].images_of}, percent: {each}."
