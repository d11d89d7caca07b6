"""The layouts that ``raydelta data import`` knows, one entry of ``FORMATS`` each, and which of them a source has."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raydelta.data.decoding import UndecodableError, open_picture
from raydelta.data.listing import USUAL_SPLITS, Listing, compile_pattern, list_pictures, sequence_of
from raydelta.data.reading import ReadLabel, read_first_channel, read_ids, read_red_or_colours
from raydelta.data.shards import Domain
from raydelta.errors import UserError
from raydelta.storage.files import read_bytes

ROAD_BELOW = 0.02  # share of road in the lower quarter of street scenes below which the ids are doubtful
FRAMES_PER_BLOCK = 100
LABEL_WORDS = ("label", "mask", "annot", "seg", "gt", "depth", "instance")
"""What folders are called that hold no photographs."""
ROAD, ROAD_COLOUR = 7, [128, 64, 128]  # labelId and colour of Cityscapes


@dataclass(frozen=True)
class Format:
    """A published layout. Patterns as in ``listing``; a label pattern is filled with what the image's has found."""

    images: str
    labels: str | None
    table: str | None = None  # what the values in the labels mean: a table; None: they are the taxonomy's own ids
    taxonomy: str = "camvid11"  # unless the user names another
    domain: Domain = "real"  # unless the user says otherwise
    read_label: ReadLabel = read_ids
    sequence: Callable[[str], str] = sequence_of
    unlabelled: tuple[str, ...] = ()  # splits whose labels are dummies
    only_labelled: bool = False  # folders without labels are no splits


def block_of(identifier: str) -> str:
    """Frames without a known sequence, in blocks of consecutive numbers: neighbours may be alike."""
    folder, _, number = identifier.rpartition("/")
    if not number.isdecimal():  # the user's own pattern
        return sequence_of(identifier)
    block = f"{int(number) // FRAMES_PER_BLOCK:05d}xx"
    return f"{folder}/{block}" if folder else block


def route_of(identifier: str) -> str:
    """``SYNTHIA-SEQS-05-SPRING/Stereo_Left/…`` → ``SEQS-05``: all seasons and cameras see the same streets."""
    match = re.search(r"SEQS-\d+", identifier)
    return match[0] if match else re.split(r"/?Stereo_", identifier)[0] or "all"


def folder_of(identifier: str) -> str:
    """The folder that an image lies in."""
    return identifier.rpartition("/")[0] or "all"


FORMATS = {
    "cityscapes": Format(
        images="{any}leftImg8bit/{split}/{path}_leftImg8bit",
        labels="{any}gtFine/{split}/{path}_gtFine_labelIds",
        table="cityscapes",
        taxonomy="cityscapes19",
        unlabelled=("test",),
    ),
    "idd": Format(
        images="{any}leftImg8bit/{split}/{path}_leftImg8bit",
        labels="{any}gtFine/{split}/{path}_gtFine_labellevel3Ids",
        table="idd",
        taxonomy="cityscapes19",
        sequence=folder_of,
    ),
    "synthia-rand": Format(
        images="{folder}RGB/{number}",
        labels="{folder}GT/LABELS/{number}",
        table="synthia-rand",
        taxonomy="cityscapes19",
        domain="synthetic",
        read_label=read_first_channel,
        sequence=block_of,
    ),
    "synthia-seqs": Format(
        images="{folder}RGB/{camera}/{number}",
        labels="{folder}GT/LABELS/{camera}/{number}",
        table="synthia-seqs",
        taxonomy="cityscapes19",
        domain="synthetic",
        read_label=read_first_channel,
        sequence=route_of,
    ),
    "synthia-sf": Format(
        images="{folder}RGBLeft/{name}",
        labels="{folder}GTLeft/{name}",
        table="synthia-sf",
        taxonomy="cityscapes19",
        domain="synthetic",
        read_label=read_first_channel,
        sequence=folder_of,
    ),
    "gta5": Format(
        images="{folder}images/{number}",
        labels="{folder}labels/{number}",
        table="gta5",
        taxonomy="cityscapes19",
        domain="synthetic",
        sequence=block_of,
    ),
    "camvid": Format(images="{split}/{name}", labels="{split}annot/{name}", table="camvid", only_labelled=True),
    "carla": Format(
        images="{folder}CameraRGB/{path}",
        labels="{folder}CameraSeg/{path}",
        table="carla",
        taxonomy="cityscapes19",
        domain="synthetic",
        read_label=read_red_or_colours,
    ),
    "folder": Format(images="images/{split}/{path}", labels="labels/{split}/{path}"),
}
FORMATS["carla-0.9.14"] = replace(FORMATS["carla"], table="carla-0.9.14")


def detect(source: str | Path) -> str | None:
    """The layout of a source, a key of ``FORMATS``, or None if it has none of them."""
    return detect_layout(list_pictures(source))


def detect_layout(listing: Listing) -> str | None:
    """The first layout whose patterns find an image and its label; ``folder`` also without labels."""
    paths = [file.path.rpartition(".")[0] for file in listing.files]
    for kind, form in FORMATS.items():
        if kind != "folder" and form.labels and all(_any(pattern, paths) for pattern in (form.images, form.labels)):
            if kind == "gta5" and not _has_palette(listing, form):  # any folder may number its images
                continue
            return kind
    if _any(FORMATS["cityscapes"].images, paths):
        return "cityscapes"
    return "folder" if _any("images/{path}", paths) or _is_plain_folder(paths) else None


def fit_folder(source: str | Path, listing: Listing, form: Format) -> Format:
    """``images/SPLIT/**`` with ``labels/SPLIT/**``; where no folder is called train, val or test, all is ``train``.

    Photographs without a folder ``images`` are photographs without labels.
    """
    paths = [file.path.rpartition(".")[0] for file in listing.files]
    if not _any("images/{path}", paths) and _is_plain_folder(paths):
        has_splits = all(path.split("/")[0] in USUAL_SPLITS and "/" in path for path in paths)
        return replace(form, images="{split}/{path}" if has_splits else "{path}", labels=None)
    below = [file.path.split("/")[1:] for file in listing.files if file.path.startswith("images/")]
    folders = {parts[0] for parts in below if len(parts) > 1} | {
        name.split("/")[1] for name in listing.empty if "/" in name
    }
    if folders & set(USUAL_SPLITS):
        if any(len(parts) == 1 for parts in below):
            raise UserError(
                f"{source}/images: holds images beside folders; either all in folders, one per split, or none"
            )
        return form
    return replace(form, images="images/{path}", labels="labels/{path}")


def _is_plain_folder(paths: Sequence[str]) -> bool:
    """Whether there are pictures, and no folder sounds as if it held labels."""
    folders = {folder.lower() for path in paths for folder in path.split("/")[:-1]}
    return bool(paths) and not any(word in folder for folder in folders for word in LABEL_WORDS)


def _any(pattern: str, paths: Sequence[str]) -> bool:
    compiled = compile_pattern(pattern)
    return any(compiled.fullmatch(path) for path in paths)


def _has_palette(listing: Listing, form: Format) -> bool:
    """Whether the first label has GTA5's palette, in which an index has Cityscapes' colour of that labelId."""
    assert form.labels
    compiled = compile_pattern(form.labels)
    first = next(file for file in listing.files if compiled.fullmatch(file.path.rpartition(".")[0]))
    try:
        with open_picture(read_bytes(first.address)) as picture:
            return picture.mode == "P" and (picture.getpalette() or [])[3 * ROAD : 3 * ROAD + 3] == ROAD_COLOUR
    except (UndecodableError, OSError, UserError):
        return False
