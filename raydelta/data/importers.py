"""Import of labelled or unlabelled images from disk or a bucket as checked shards."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raydelta.data.formats import FORMATS, ROAD_BELOW, Format
from raydelta.data.listing import Listing, Paired, compile_pattern, list_pictures, pair, split_by_sequence
from raydelta.data.reading import Box, encode_pair
from raydelta.data.shards import UNDECODABLE, BadItem, Domain, Item, Manifest, Progress, Row, decode_label
from raydelta.data.tables import Table, read_table
from raydelta.data.taxonomy import IGNORE, Taxonomy, get_taxonomy
from raydelta.data.writing import check_target, write_dataset
from raydelta.errors import UserError
from raydelta.storage import absolute, read_bytes, without_secrets

ROAD, ROAD_COLOUR = 7, [128, 64, 128]  # labelId and colour of Cityscapes
PROBED = 6  # labels of each split that are read before the import starts


def import_dataset(
    kind: str,
    source: str | Path,
    target: str | Path,
    *,
    name: str | None = None,
    domain: Domain | None = None,
    taxonomy: str | Taxonomy | None = None,
    images: str | None = None,
    labels: str | None = None,
    ids: str | None = None,
    only: str | None = None,
    size: tuple[int, int] | None = None,
    crop: Box | None = None,
    splits: Sequence[str] | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    allow_unlabelled: bool = False,
    workers: int | None = None,
    listing: Listing | None = None,
    progress: Progress = lambda done, total, note: None,
) -> Manifest:
    """Import a folder, or an address, in a known layout as a data set.

    Args:
        kind: a key of ``FORMATS``.
        name: of the data set; the target's if None.
        domain, taxonomy, images, labels, ids: in place of the format's. A taxonomy may be a built-in one or a file,
            images and labels are patterns (images alone: there are no labels), ids is a table or a file.
        only: a shell pattern that the image ids have to match.
        size: (width, height) to resize to, images smoothly and labels to the nearest pixel. Without size and crop,
            8-bit RGB JPEG and PNG files are taken over byte by byte.
        crop: (left, top, right, bottom) in pixels of the source, cut out before resizing.
        splits: which of the data set's own splits to import, all if None.
        shares: split → share, in place of the data set's own: a seeded split by sequence.
        limit: images per split, the first ones by name.
        skip_bad: leave bad samples out and list them in the manifest; otherwise the first one stops the import.
        allow_unlabelled: an image without a label file in a split with labels is an unlabelled image, not an error.
        workers: at most so many tasks at once; as many as the cluster has CPUs if None.
        listing: of the source, if it was made before.

    Raises:
        BadItem: a sample breaks a rule; the message names the file and the rule.
        UserError: the source is not of that kind, has no images, or the target cannot be written.
    """
    if kind not in FORMATS:
        raise UserError(f"no importer {kind!r}; there are: {', '.join(FORMATS)}")
    _check_numbers(size, crop, limit)
    check_target(target)
    listing = listing or list_pictures(source)
    form = FORMATS[kind]
    if kind == "folder" and images is None:
        form = _fit_folder(source, listing, form)
    form = replace(
        form,
        images=images or form.images,
        labels=labels if images or labels else form.labels,
        table=ids or form.table,
        domain=domain or form.domain,
    )
    classes = taxonomy if isinstance(taxonomy, Taxonomy) else get_taxonomy(taxonomy or form.taxonomy)
    table = read_table(form.table) if form.table else Table(ids=dict(enumerate(classes.classes)) | {IGNORE: "void"})
    if set(table.to(classes).values()) == {IGNORE}:
        raise UserError(
            f"none of the names in the id table {form.table} is a class of {classes.name}: {', '.join(classes.classes)}"
        )
    found = pair(
        source,
        listing,
        form.images,
        form.labels,
        sequence=form.sequence,
        unlabelled_splits=form.unlabelled,
        allow_unlabelled=allow_unlabelled,
        only=only,
    )
    if form.only_labelled:
        labelled = {split: items for split, items in found.splits.items() if any(item.label for item in items)}
        found = found._replace(splits=labelled)
    if not found.splits and not found.bad and only is not None:
        raise UserError(f"{without_secrets(source)}: no image id matches --only {only}")
    if not found.splits and not found.bad:
        looks = detect_listing(listing)
        hint = f"; it looks like {looks}" if looks not in (None, kind) else ""
        raise UserError(f"{without_secrets(source)}: not the layout of {kind}: no picture is at {form.images}{hint}")
    if found.bad and not skip_bad:
        first, more = found.bad[0], len(found.bad) - 1
        raise BadItem(first.file, f"{first.rule} (and {more} more bad files)" if more else first.rule)
    if form.labels and not any(item.label for items in found.splits.values() for item in items):
        missing = f"{without_secrets(source)}: no label is at {form.labels}"
        if labels:
            raise UserError(missing)
        warnings.warn(f"{missing}: the images are imported without labels", stacklevel=2)
    chosen = _choose(source, found, splits, shares, seed, limit)
    encode = partial(encode_pair, table=table, ids=table.to(classes), read_label=form.read_label, size=size, crop=crop)
    _probe(chosen, encode, classes, skip_bad)
    options: dict[str, Any] = {"kind": kind, "images": form.images, "labels": form.labels, "only": only}
    options |= {"size": size, "crop": crop, "splits": splits, "limit": limit, "allow_unlabelled": allow_unlabelled}
    options |= {"shares": dict(shares) if shares else None, "seed": seed}
    return write_dataset(
        target,
        chosen,
        encode,
        name=name or Path(str(target).partition("?")[0]).name,
        domain=form.domain,
        taxonomy=classes,
        source=f"{kind}:{without_secrets(absolute(source))}",
        options=options | {"dropped": table.dropped(classes), "table": table.model_dump(mode="json")},
        skip_bad=skip_bad,
        skipped=found.bad,
        workers=workers,
        progress=progress,
    )


def detect(source: str | Path) -> str | None:
    """The kind of a source, or None if no importer knows it."""
    return detect_listing(list_pictures(source))


def detect_listing(listing: Listing) -> str | None:
    """The first format whose patterns find an image and its label; ``folder`` also without labels."""
    paths = [file.path.rpartition(".")[0] for file in listing.files]
    for kind, form in FORMATS.items():
        if kind != "folder" and form.labels and all(_any(pattern, paths) for pattern in (form.images, form.labels)):
            if kind == "gta5" and not _has_palette(listing, form):  # any folder may number its images
                continue
            return kind
    if _any(FORMATS["cityscapes"].images, paths):
        return "cityscapes"
    return "folder" if _any("images/{path}", paths) else None


def _any(pattern: str, paths: Sequence[str]) -> bool:
    compiled = compile_pattern(pattern)
    return any(compiled.fullmatch(path) for path in paths)


def _has_palette(listing: Listing, form: Format) -> bool:
    """Whether the first label has GTA5's palette, in which an index has Cityscapes' colour of that labelId."""
    assert form.labels
    compiled = compile_pattern(form.labels)
    first = next(file for file in listing.files if compiled.fullmatch(file.path.rpartition(".")[0]))
    try:
        with Image.open(io.BytesIO(read_bytes(first.address))) as picture:
            return picture.mode == "P" and (picture.getpalette() or [])[3 * ROAD : 3 * ROAD + 3] == ROAD_COLOUR
    except UNDECODABLE:
        return False


def _fit_folder(source: str | Path, listing: Listing, form: Format) -> Format:
    """``images/SPLIT/**`` with ``labels/SPLIT/**``; where no folder is called train, val or test, all is ``train``."""
    below = [file.path.split("/")[1:] for file in listing.files if file.path.startswith("images/")]
    folders = {parts[0] for parts in below if len(parts) > 1} | {
        name.split("/")[1] for name in listing.empty if "/" in name
    }
    if folders & {"train", "val", "test"}:
        if any(len(parts) == 1 for parts in below):
            raise UserError(
                f"{source}/images: holds images beside folders; either all in folders, one per split, or none"
            )
        return form
    return replace(form, images="images/{path}", labels="labels/{path}")


def _check_numbers(size: tuple[int, int] | None, crop: Box | None, limit: int | None) -> None:
    if size is not None and min(size) < 1:
        raise UserError(f"size {size}: expected (width, height) in pixels")
    if crop is not None and not (0 <= crop[0] < crop[2] and 0 <= crop[1] < crop[3]):
        raise UserError(f"crop {crop}: expected (left, top, right, bottom) in pixels")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit}: expected at least 1 image per split")


def _choose(
    source: str | Path,
    found: Paired,
    splits: Sequence[str] | None,
    shares: Mapping[str, float] | None,
    seed: int,
    limit: int | None,
) -> dict[str, list[Item]]:
    """The items of every split that is asked for."""
    unknown = sorted(set(splits or ()) - found.splits.keys())
    if unknown:
        raise UserError(
            f"{without_secrets(source)}: has no split {', '.join(unknown)}; there are: {', '.join(found.splits)}"
        )
    own = {split: items for split, items in found.splits.items() if not splits or split in splits}
    if shares is not None:
        # Photographs that nobody labelled would make a test split that tests nothing.
        pool = {split: items for split, items in own.items() if any(item.label for item in items)} or own
        ids = [item.id for items in pool.values() for item in items]
        if len(set(ids)) < len(ids):
            pool = {
                split: [item._replace(id=f"{split}/{item.id}", sequence=f"{split}/{item.sequence}") for item in items]
                for split, items in pool.items()
            }
        own = split_by_sequence([item for items in pool.values() for item in items], shares, seed)
    return {split: items[:limit] for split, items in own.items()}


def _probe(
    splits: Mapping[str, Sequence[Item]], encode: Callable[[Item], Row], taxonomy: Taxonomy, skip_bad: bool
) -> None:
    """Read a few labels of every split before the work starts: labels that are all void, or streets without road.

    Raises:
        UserError: every pixel of them is void.
        BadItem: one of them breaks a rule, and ``skip_bad`` is off.
    """
    labels: list[np.ndarray] = []
    first = None
    for items in splits.values():
        labelled = [item for item in items if item.label is not None]
        for item in labelled[:: max(1, len(labelled) // PROBED)][:PROBED]:
            try:
                encoded = encode(item)["label"]
            except BadItem:
                if not skip_bad:
                    raise
                continue
            assert encoded is not None
            labels.append(decode_label(encoded))
            first = first or item.label
    if not labels:
        return
    if all((label == IGNORE).all() for label in labels):
        raise UserError(
            f"{first}: every pixel is void, as in {len(labels) - 1} more labels that were tried; is this the right "
            "--kind, and are these the label files?"
        )
    road = taxonomy.find("road")
    if road != IGNORE and len(labels) >= PROBED:
        lower = np.concatenate([label[3 * label.shape[0] // 4 :].ravel() for label in labels])
        share = float((lower[lower != IGNORE] == road).mean()) if (lower != IGNORE).any() else 0.0
        if share < ROAD_BELOW:
            warnings.warn(
                f"road covers {share:.1%} of the lower quarter of {len(labels)} labels: in street scenes a sign of the "
                "wrong id table; compare the contact sheet (raydelta data show), --kind and --ids",
                stacklevel=3,
            )
