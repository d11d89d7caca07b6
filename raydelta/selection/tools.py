"""Tasks for Label Studio and CVAT with the present prediction as a first label, and the masks that come back from them.

A mask is uint8 [H, W] of taxonomy ids in the size of the stored image, 255 where nothing is labelled.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydelta.data.decoding import UndecodableError, load_picture
from raydelta.data.labels import Box
from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.errors import UserError
from raydelta.selection.rle import decode_mask, encode_mask
from raydelta.storage.files import write_atomically

Mask = NDArray[np.uint8]

IMAGES, STUDIO = "images.txt", "label-studio.json"


@dataclass(frozen=True)
class Task:
    """One image to be labelled, or some boxes of it."""

    id: str
    file: str  # below images/
    boxes: tuple[Box, ...]  # none: the whole image
    draft: Mask  # what the networks see there now; 255 outside the boxes


def write_tasks(tasks: Sequence[Task], taxonomy: Taxonomy, model: str, directory: Path) -> None:
    """Files for both tools: tasks, the classes, and the drafts.

    Args:
        model: what the drafts are by.
    """
    names = "".join(f"{task.file}\n" for task in tasks)
    write_atomically(directory / IMAGES, names)
    write_atomically(directory / "manifest.jsonl", _cvat_manifest(tasks))
    write_atomically(directory / "cvat-labels.json", json.dumps(_cvat_labels(taxonomy), indent=1) + "\n")
    write_atomically(directory / "cvat-drafts.zip", _cvat_drafts(tasks, taxonomy))
    studio = [_studio_task(task, taxonomy, model) for task in tasks]
    write_atomically(directory / STUDIO, json.dumps(studio) + "\n")
    write_atomically(directory / "label-studio.xml", _studio_labels(taxonomy))


def _studio_task(task: Task, taxonomy: Taxonomy, model: str) -> dict[str, Any]:
    height, width = task.draft.shape
    results = [
        {
            "id": f"{number}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_mask(task.draft == number), "brushlabels": [name]},
        }
        for number, name in enumerate(taxonomy.classes)
        if (task.draft == number).any()
    ]
    return {
        "data": {"image": f"/data/local-files/?d=images/{quote(task.file)}"},
        "meta": {"id": task.id} | ({"boxes": task.boxes} if task.boxes else {}),
        "predictions": [{"model_version": model, "result": results}],
    }


def _studio_labels(taxonomy: Taxonomy) -> str:
    """The labelling interface of a Label Studio project."""
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="{_hex(colour)}"/>\n'
        for name, colour in zip(taxonomy.classes, taxonomy.palette, strict=True)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )


def _cvat_manifest(tasks: Sequence[Task]) -> str:
    """A manifest as CVAT reads it from a share or a bucket: one JSON object a line."""
    lines: list[dict[str, Any]] = [{"version": "1.1"}, {"type": "images"}]
    for task in tasks:
        name, _, extension = task.file.rpartition(".")
        height, width = task.draft.shape
        lines.append({"name": name, "extension": f".{extension}", "width": width, "height": height})
    return "".join(json.dumps(line) + "\n" for line in lines)


def _cvat_labels(taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """The labels of a CVAT task, for its constructor's raw view."""
    colours = map(_hex, _cvat_colours(len(taxonomy)))
    return [{"name": n, "color": c, "attributes": []} for n, c in zip(taxonomy.classes, colours, strict=True)]


def _cvat_drafts(tasks: Sequence[Task], taxonomy: Taxonomy) -> bytes:
    """The drafts in CVAT's format "Segmentation mask 1.1", to upload as annotations."""
    colours = _cvat_colours(len(taxonomy))
    named = [("background", (0, 0, 0)), *zip(taxonomy.classes, colours, strict=True)]
    labelmap = "# label:color_rgb:parts:actions\n" + "".join(f"{n}:{','.join(map(str, c))}::\n" for n, c in named)
    painted = np.zeros((256, 3), dtype=np.uint8)
    painted[: len(taxonomy)] = colours
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        stems = [task.file.rpartition(".")[0] for task in tasks]
        archive.writestr(zipfile.ZipInfo("labelmap.txt"), labelmap)
        archive.writestr(zipfile.ZipInfo("ImageSets/Segmentation/default.txt"), "".join(f"{s}\n" for s in stems))
        for stem, task in zip(stems, tasks, strict=True):
            picture = io.BytesIO()
            Image.fromarray(painted[task.draft]).save(picture, "PNG")
            archive.writestr(zipfile.ZipInfo(f"SegmentationClass/{stem}.png"), picture.getvalue())
    return content.getvalue()


def _cvat_colours(count: int) -> list[tuple[int, int, int]]:
    """Pascal VOC's colours from 1 on: all differ, and none is the black of the background."""
    return [
        tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))  # type: ignore[misc]
        for index in range(1, count + 1)
    ]


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def read_masks(export: Path, ids: Mapping[str, tuple[int, int]], taxonomy: Taxonomy) -> dict[str, Mask]:
    """The masks of an export: of CVAT ("Segmentation mask 1.1"), of Label Studio (JSON), or PNGs of class ids.

    Args:
        export: a zip file, a folder, or Label Studio's JSON file.
        ids: the images that may have been labelled, with their width and height.

    Raises:
        UserError: the export cannot be read, labels other images, other sizes or other classes, or one image twice.
    """
    files = _open_export(export)
    maps = [name for name in files if name.rpartition("/")[2] == "labelmap.txt"]
    lists = [name for name in files if name.endswith(".json")]
    if maps:
        found = _read_cvat(export, files, maps[0], ids, taxonomy)
    elif lists:
        found = (pair for name in lists for pair in _read_studio(export, name, files[name], ids, taxonomy))
    else:
        found = _read_ids(export, files, ids, taxonomy)
    masks: dict[str, Mask] = {}
    for name, mask in found:
        if name in masks:
            raise UserError(f"{export}: {name} is labelled twice; export one annotation for each image")
        if mask.shape[::-1] != ids[name]:
            raise UserError(
                f"{export}: the mask of {name} is {mask.shape[1]}x{mask.shape[0]}, its image "
                f"{ids[name][0]}x{ids[name][1]}: label the images as they were written"
            )
        masks[name] = mask
    if not masks:
        raise UserError(
            f'{export}: no mask in it; export "Segmentation mask 1.1" from CVAT, JSON from Label Studio, or PNGs of '
            "class ids named like the images"
        )
    return masks


def _open_export(export: Path) -> dict[str, bytes]:
    """Path within the export → content, of masks and lists only."""

    def wanted(name: str) -> bool:
        return name.lower().endswith((".png", ".json", "labelmap.txt")) and "SegmentationObject" not in name

    try:
        if export.is_dir():
            paths = sorted(path for path in export.rglob("*") if path.is_file())
            return {path.relative_to(export).as_posix(): path.read_bytes() for path in paths if wanted(path.name)}
        if zipfile.is_zipfile(export):
            with zipfile.ZipFile(export) as archive:
                return {name: archive.read(name) for name in sorted(archive.namelist()) if wanted(name)}
        return {export.name: export.read_bytes()}
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: it has a password
        raise UserError(f"{export}: cannot be read: {error}") from error


def _find_id(export: Path, file: str, ids: Mapping[str, tuple[int, int]]) -> str:
    """The image that a file is of: the longest end of its path, without suffix, that is an id."""
    parts = file.rpartition(".")[0].split("/")
    for start in range(len(parts)):
        if (name := "/".join(parts[start:])) in ids:
            return name
    raise UserError(f"{export}: {file}: no such image was to be labelled; a mask is named like its image")


def _read_cvat(
    export: Path, files: Mapping[str, bytes], labelmap: str, ids: Mapping[str, tuple[int, int]], taxonomy: Taxonomy
) -> Iterator[tuple[str, Mask]]:
    values: dict[int, int] = {0: IGNORE}
    for line in files[labelmap].decode(errors="replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = map(int, rest.split(":")[0].split(","))
        except ValueError:
            raise UserError(f"{export}: {labelmap}: {line!r} is not of the form name:r,g,b::") from None
        background = name.strip().lower() == "background"
        values[red << 16 | green << 8 | blue] = IGNORE if background else _class(export, name.strip(), taxonomy)
    for file, content in files.items():
        if "SegmentationClass/" not in file:
            continue
        name = _find_id(export, file, ids)
        pixels = np.asarray(_open_picture(export, file, content).convert("RGB")).astype(np.int64)
        coded = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        present, places = np.unique(coded, return_inverse=True)
        unknown = [f"#{value:06x}" for value in present.tolist() if value not in values]
        if unknown:
            raise UserError(f"{export}: {file} has colours that {labelmap} does not name: {', '.join(unknown[:5])}")
        yield name, np.array([values[value] for value in present.tolist()], np.uint8)[places].reshape(coded.shape)


def _read_studio(
    export: Path, file: str, content: bytes, ids: Mapping[str, tuple[int, int]], taxonomy: Taxonomy
) -> Iterator[tuple[str, Mask]]:
    try:
        for task in json.loads(content):
            annotations = [each for each in task["annotations"] if not each.get("was_cancelled")]
            if not annotations:
                continue
            image = unquote(str(task["data"]["image"]))
            own = str((task.get("meta") or {}).get("id"))
            name = own if own in ids else _find_id(export, image, ids)
            if len(annotations) > 1:
                raise UserError(f"{export}: {name} has {len(annotations)} annotations; keep one of them")
            width, height = ids[name]
            mask = np.full((height, width), IGNORE, np.uint8)
            for result in annotations[0]["result"]:
                if result["type"] != "brushlabels" or result["value"]["format"] != "rle":
                    raise UserError(f"{export}: {name}: a label of type {result['type']}; use the brush")
                painted = decode_mask(result["value"]["rle"], result["original_height"], result["original_width"])
                if painted.shape != mask.shape:
                    raise ValueError(f"{name} is {width}x{height}, its label {painted.shape[1]}x{painted.shape[0]}")
                mask[painted] = _class(export, result["value"]["brushlabels"][0], taxonomy)
            yield name, mask
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{export}: {file} is no JSON export of Label Studio: {error!r}") from error


def _read_ids(
    export: Path, files: Mapping[str, bytes], ids: Mapping[str, tuple[int, int]], taxonomy: Taxonomy
) -> Iterator[tuple[str, Mask]]:
    for file, content in files.items():
        name, picture = _find_id(export, file, ids), _open_picture(export, file, content)
        if picture.mode not in ("L", "P", "1"):
            raise UserError(f"{export}: {file} has mode {picture.mode}: a mask is a PNG of 8-bit class ids")
        mask = np.asarray(picture).astype(np.uint8)
        outside = sorted(set(np.unique(mask).tolist()) - set(range(len(taxonomy))) - {IGNORE})
        if outside:
            raise UserError(f"{export}: {file} has the ids {outside[:5]}; there are 0 to {len(taxonomy) - 1} and 255")
        yield name, mask


def _open_picture(export: Path, file: str, content: bytes) -> Image.Image:
    try:
        return load_picture(content)
    except UndecodableError as error:
        raise UserError(f"{export}: {file} cannot be decoded: {error}") from error


def _class(export: Path, name: str, taxonomy: Taxonomy) -> int:
    found = taxonomy.find(name)
    if found == IGNORE:
        raise UserError(f"{export}: the class {name!r} is none of {taxonomy.name}: {', '.join(taxonomy.classes)}")
    return found
