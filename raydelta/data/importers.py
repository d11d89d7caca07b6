"""Data sets in: from the folders of other formats, and from the built-in simulator.

An importer is a small function that says which files belong together and what their label values mean; reading,
checking and encoding are the same for all. The source is only ever read. Not here: the on-disk format (shards).
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps

from raydelta.data.shards import (
    UNDECODABLE,
    BadItem,
    Item,
    Manifest,
    Progress,
    Row,
    is_plain,
)
from raydelta.data.simulator import Look, simulate
from raydelta.data.writing import encode_jpeg, encode_label, write_dataset
from raydelta.errors import UserError
from raydelta.taxonomy import IGNORE, Taxonomy, get_taxonomy

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
EXIF_ORIENTATION = 0x0112
EIGHT_BIT = {"RGB", "L", "P", "RGBA", "LA", "CMYK"}  # Pillow's modes of images that become RGB
NOT_IDS = {
    "I;16": "a 16-bit picture",
    "I;16B": "a 16-bit picture",
    "I": "a picture of more than 8 bits",
    "RGB": "a colour picture",
    "RGBA": "a colour picture",
    "1": "a 1-bit picture",
}
CAMVID_UNLABELLED = 11
# Every split draws from scenes of its own, and growing one leaves the others as they are.
FIRST_SCENE = {"train": 0, "val": 1_000_000, "test": 2_000_000}
SEQUENCES = 4  # per simulated split
SCENES_PER_SHARD = 50  # few, as rendering costs more than reading and should keep every core busy

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    taxonomy: Taxonomy
    size: tuple[int, int] | None = None  # (width, height) after the crop
    crop: Box | None = None  # (left, top, right, bottom) in pixels of the source
    splits: tuple[str, ...] | None = None  # all, if None
    limit: int | None = None  # images per split, the first ones by name
    allow_unlabelled: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"size {self.size}: expected (width, height) in pixels")
        if self.crop is not None and not (0 <= self.crop[0] < self.crop[2] and 0 <= self.crop[1] < self.crop[3]):
            raise UserError(f"crop {self.crop}: expected (left, top, right, bottom) in pixels")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit {self.limit}: expected at least 1 image per split")


class Layout(NamedTuple):
    """What an importer found."""

    ids: Mapping[int, int]  # value in the label files -> taxonomy id or 255; any other value is an error
    splits: dict[str, list[Item]]
    bad: list[BadItem]  # what cannot become an item: a file without its partner, for one


def import_dataset(
    kind: str,
    source: str | Path,
    target: str | Path,
    *,
    name: str | None = None,
    domain: Literal["synthetic", "real"] = "real",
    taxonomy: str = "camvid11",
    size: tuple[int, int] | None = None,
    crop: Box | None = None,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    allow_unlabelled: bool = False,
    progress: Progress = lambda done, total, note: None,
) -> Manifest:
    """Import a folder in a known layout as a data set.

    Args:
        kind: a key of ``IMPORTERS``.
        name: of the data set; the target's if None.
        taxonomy: a built-in one, or a YAML or JSON file.
        size: (width, height) to resize to, images smoothly and labels to the nearest pixel. Without size and crop,
            8-bit RGB JPEG and PNG files are taken over byte by byte.
        crop: (left, top, right, bottom) in pixels of the source, cut out before resizing.
        splits: the splits to import, all if None.
        limit: images per split, the first ones by name.
        skip_bad: leave bad samples out and list them in the manifest; otherwise the first one stops the import.
        allow_unlabelled: an image without a label file in a split with labels is an unlabelled image, not an error.

    Raises:
        BadItem: a sample breaks a rule; the message names the file and the rule.
        UserError: the source is not of that kind, has no images, or the target cannot be written.
    """
    if kind not in IMPORTERS:
        raise UserError(f"no importer {kind!r}; there are: {', '.join(IMPORTERS)}")
    root = Path(source).expanduser().resolve()
    options = Options(get_taxonomy(taxonomy), size, crop, tuple(splits) if splits else None, limit, allow_unlabelled)
    try:
        layout = IMPORTERS[kind](root, options)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if layout.bad and not skip_bad:
        first, more = layout.bad[0], len(layout.bad) - 1
        raise BadItem(first.file, f"{first.rule} (and {more} more bad files)" if more else first.rule)
    return write_dataset(
        target,
        layout.splits,
        partial(encode_pair, ids=layout.ids, size=size, crop=crop),
        name=name or Path(target).name,
        domain=domain,
        taxonomy=options.taxonomy,
        source=f"{kind}:{root}",
        options={"size": size, "crop": crop, "splits": splits, "limit": limit, "allow_unlabelled": allow_unlabelled},
        skip_bad=skip_bad,
        skipped=layout.bad,
        progress=progress,
    )


def detect(source: str | Path) -> str | None:
    """The kind of a source folder, or None if no importer knows it."""
    names = {path.name for path in _entries(Path(source))}
    if {"train", "trainannot"} <= names:
        return "camvid"
    return "folder" if "images" in names else None


def import_folder(source: Path, options: Options) -> Layout:
    """``images/SPLIT/**`` with ``labels/SPLIT/**`` of the same names, or without SPLIT as the one split ``train``.

    Labels are 8-bit single-channel ids of the taxonomy, or 255. A palette image counts by its indices, not its
    colours, and only if all of them are ids of the taxonomy. A split without a label folder is an unlabelled one.
    """
    images, labels = source / "images", source / "labels"
    entries = _entries(images)
    folders = {path.name: (path, labels / path.name) for path in entries if path.is_dir()}
    if folders and any(_is_picture(path) for path in entries):
        raise UserError(f"{images}: holds images beside folders; either all in folders, one per split, or none")
    ids = {value: value for value in (*range(len(options.taxonomy)), IGNORE)}
    return paired(source, folders or {"train": (images, labels)}, ids, options)


def import_camvid(source: Path, options: Options) -> Layout:
    """CamVid as SegNet published it: ``SPLIT/NAME.png`` with ``SPLITannot/NAME.png``, id 11 unlabelled.

    The lists beside the folders (``train.txt``) hold absolute paths of another machine and are not read.
    """
    if options.taxonomy.name != "camvid11":
        raise UserError(f"CamVid has the taxonomy camvid11, not {options.taxonomy.name}")
    folders = {path.name: (path, path.with_name(f"{path.name}annot")) for path in _entries(source)}
    folders = {split: pair for split, pair in folders.items() if pair[1].is_dir()}
    if not folders:
        raise UserError(f"{source}: not the layout of CamVid: no folders 'train' and 'trainannot'")
    ids = {value: value for value in (*range(CAMVID_UNLABELLED), IGNORE)} | {CAMVID_UNLABELLED: IGNORE}
    return paired(source, folders, ids, options)


IMPORTERS: dict[str, Callable[[Path, Options], Layout]] = {"folder": import_folder, "camvid": import_camvid}


def paired(source: Path, folders: Mapping[str, tuple[Path, Path]], ids: Mapping[int, int], options: Options) -> Layout:
    """Pair images and labels by their paths without suffix.

    Args:
        folders: split → (image folder, label folder); the second need not exist.
    """
    layout = Layout(ids, {}, [])
    unknown = sorted(set(options.splits or ()) - folders.keys())
    if unknown:
        raise UserError(f"{source}: has no split {', '.join(unknown)}; there are: {', '.join(sorted(folders))}")
    for split in sorted(options.splits or folders, key=lambda split: (split != "train", split == "test", split)):
        items = list(_pairs(source, *folders[split], options.allow_unlabelled, layout.bad))
        if not items and not layout.bad:
            raise UserError(f"split {split!r} is empty: no image in {folders[split][0]}")
        layout.splits[split] = items[: options.limit]
    return layout


def encode_pair(item: Item, ids: Mapping[int, int], size: tuple[int, int] | None, crop: Box | None) -> Row:
    """Read an image and its label, check both, crop and resize them alike.

    Raises:
        BadItem: one of the files breaks a rule.
    """
    original, data = _read_image(item.image)
    image = _shape(original, item.image, size, crop, Image.Resampling.BILINEAR)
    label = None
    if item.label is not None:
        mask = _read_label(item.label, ids)
        if mask.size != original.size:
            raise BadItem(
                item.label,
                f"the label has {mask.width}×{mask.height} pixels, its image {original.width}×{original.height}",
            )
        label = encode_label(np.asarray(_shape(mask, item.label, size, crop, Image.Resampling.NEAREST)))
    return Row(
        id=item.id,
        sequence=item.sequence,
        image=data if data is not None and image is original else encode_jpeg(image),
        label=label,
        height=image.height,
        width=image.width,
    )


def sequence_of(identifier: str) -> str:
    """The drive or clip that an image belongs to, read from its id (its path within the split, without suffix).

    The trailing frame number goes, and the separator and letter before it: ``0001TP_008550`` → ``0001TP``,
    ``Seq05VD_f01620`` → ``Seq05VD``, ``aachen/aachen_000000_000019`` → ``aachen/aachen_000000``. A name that is only
    a number belongs to its folder (``clip7/000123`` → ``clip7``, ``000123`` → ``all``). A name without a number at its
    end is a sequence of its own.
    """
    folder, _, name = identifier.rpartition("/")
    match = re.fullmatch(r"(.*?)(?:[-_. ]+[A-Za-z]?)?\d+", name)
    prefix = match[1] if match else name
    return "/".join(part for part in (folder, prefix) if part) or "all"


def simulate_dataset(
    look: Look,
    target: str | Path,
    *,
    counts: Mapping[str, int],
    width: int,
    height: int,
    seed: int = 0,
    progress: Progress = lambda done, total, note: None,
) -> Manifest:
    """Make a data set with the built-in simulator: ``synthetic``, or ``street`` as the stand-in for photographs.

    Args:
        counts: images per split (train, val, test); the splits share no scene.
        width, height: of the images, in pixels.
    """
    if look not in get_args(Look):
        raise UserError(f"look {look!r}: one of {', '.join(get_args(Look))}")
    splits = {}
    for split, count in counts.items():
        if split not in FIRST_SCENE:
            raise UserError(f"split {split!r}: a simulated set has {', '.join(FIRST_SCENE)}")
        first = FIRST_SCENE[split]
        splits[split] = [
            Item(
                f"{look}-{first + index:07d}", f"{look}-{split}-{index * SEQUENCES // count}", str(first + index), None
            )
            for index in range(count)
        ]
    return write_dataset(
        target,
        splits,
        partial(encode_scene, look=look, width=width, height=height, seed=seed),
        name=Path(target).name,
        domain="synthetic" if look == "synthetic" else "real",
        taxonomy=get_taxonomy("camvid11"),
        source=f"built-in simulator, look {look!r}",
        options={"width": width, "height": height, "seed": seed},
        rows_per_shard=SCENES_PER_SHARD,
        progress=progress,
    )


def encode_scene(item: Item, look: Look, width: int, height: int, seed: int) -> Row:
    """Render one scene of the simulator; ``item.image`` is its index."""
    image, mask = simulate(int(item.image), seed=seed, look=look, width=width, height=height)
    encoded = encode_jpeg(Image.fromarray(image))
    return Row(id=item.id, sequence=item.sequence, image=encoded, label=encode_label(mask), height=height, width=width)


# Listing


def _pairs(root: Path, images: Path, labels: Path, allow_unlabelled: bool, bad: list[BadItem]) -> Iterator[Item]:
    pictures = _pictures(images, root, bad)
    labelled = labels.is_dir()
    masks = _pictures(labels, root, bad) if labelled else {}
    for name in sorted(pictures.keys() | masks.keys()):
        files = [*pictures.get(name, ()), *masks.get(name, ())]
        twice = next((group[name] for group in (pictures, masks) if len(group.get(name, ())) > 1), None)
        if twice is not None:
            bad.append(BadItem(twice[1], f"the same name as {twice[0].name}: which one is meant?"))
        elif name not in pictures:
            bad.append(BadItem(files[0], f"the label has no image of the same name in {images}"))
        elif name not in masks and labelled and not allow_unlabelled:
            bad.append(BadItem(files[0], f"the image has no label of the same name in {labels}"))
        elif not is_plain(name):
            bad.append(BadItem(files[0], "the name has characters that are not printable, or a backslash"))
        else:
            try:
                stats = [file.stat() for file in files]
            except OSError as error:
                bad.append(BadItem(error.filename, f"cannot be read: {error.strerror}"))
                continue
            version = " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)
            label = str(files[1]) if len(files) > 1 else None
            yield Item(name, sequence_of(name), str(files[0]), label, version)


def _pictures(folder: Path, root: Path, bad: list[BadItem]) -> dict[str, list[Path]]:
    """The picture files below a folder by their paths in it without suffix."""
    if not folder.resolve().is_relative_to(root):
        raise UserError(f"{folder}: a symbolic link that leads out of {root}")
    found: dict[str, list[Path]] = {}
    folders = [folder]
    while folders:
        for path in _entries(folders.pop()):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                bad.append(BadItem(path, f"a symbolic link that leads out of {root}"))
            elif path.is_symlink() and path.is_dir():
                bad.append(BadItem(path, "a symbolic link to a folder"))
            elif path.is_dir():
                folders.append(path)
            elif _is_picture(path):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, but for hidden files (macOS leaves ``._NAME.png`` beside every picture)."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read as a folder: {error.strerror}") from error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


# Reading


def _read_image(file: str) -> tuple[Image.Image, bytes | None]:
    """The RGB image, upright, and its bytes where a shard can take them as they are."""
    image, data = _load(file)
    if image.mode not in EIGHT_BIT:
        raise BadItem(file, f"the image has Pillow's mode {image.mode}; expected 8 bits per channel")
    if image.format in ("JPEG", "PNG") and image.mode == "RGB" and image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image, data
    return ImageOps.exif_transpose(image).convert("RGB"), None


def _read_label(file: str, ids: Mapping[int, int]) -> Image.Image:
    """The mask of taxonomy ids, mode L."""
    image, _ = _load(file)
    if image.format == "JPEG":
        raise BadItem(file, "the label is a JPEG, which is lossy; expected a PNG of class ids")
    if image.mode not in ("L", "P"):
        found = NOT_IDS.get(image.mode, f"an image of Pillow's mode {image.mode}")
        raise BadItem(file, f"the label is {found}; expected 8-bit single-channel class ids")
    unknown = [value for value, count in enumerate(image.histogram()) if count and value not in ids]
    if unknown:
        what = "palette indices" if image.mode == "P" else "ids"
        raise BadItem(file, f"the label has the {what} {unknown}, which are not in the table ({_ranges(ids)})")
    return Image.fromarray(np.asarray(image)).point([ids.get(value, IGNORE) for value in range(256)])


def _load(file: str) -> tuple[Image.Image, bytes]:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise BadItem(file, f"cannot be read: {error.strerror}") from error
    if not data:
        raise BadItem(file, "the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UNDECODABLE as error:
        # Pillow names the buffer, at an address that differs every time.
        raise BadItem(file, f"cannot be decoded: {str(error).split(' <_io.')[0]}") from error
    return image, data


def _shape(
    image: Image.Image, file: str, size: tuple[int, int] | None, crop: Box | None, method: Image.Resampling
) -> Image.Image:
    if crop is not None:
        if crop[2] > image.width or crop[3] > image.height:
            raise BadItem(file, f"has {image.width}×{image.height} pixels, the crop {crop} reaches beyond")
        image = image.crop(crop)
    return image if size is None or image.size == size else image.resize(size, method)


def _ranges(ids: Iterable[int]) -> str:
    """``[0, 1, 2, 255]`` → ``0-2, 255``."""
    values = sorted(ids)
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
