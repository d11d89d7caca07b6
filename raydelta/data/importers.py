"""Import of labelled or unlabelled images from disk or a bucket as checked shards."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raydelta.config import Section
from raydelta.data.decoding import decode_label
from raydelta.data.formats import FORMATS, ROAD_BELOW, Format, detect_layout, fit_folder
from raydelta.data.listing import Listing, Paired, list_pictures, pair, split_by_sequence
from raydelta.data.reading import Box, encode_pair, read_colours, read_ids
from raydelta.data.shards import BadItem, Description, Domain, Item, Manifest, OnProgress, StoredRow
from raydelta.data.tables import Table, extend, own_ids, read_table
from raydelta.data.taxonomy import BUILT_IN, IGNORE, Taxonomy, get_taxonomy
from raydelta.data.writing import check_target, write_dataset
from raydelta.errors import UserError
from raydelta.parsing import validated
from raydelta.storage.files import absolute, without_secrets

ROAD_LIKELY = 0.2  # share of road in the lower quarter of labels that are read rightly
PROBED = 6  # labels of each split that are read before the import starts


class ImportOptions(Section):
    """How a source becomes a data set. Where a field is None, the layout decides.

    The fields from ``images`` on decide the content of the data set; its manifest records them.
    """

    name: str | None = None  # of the data set; default: the name of the target
    domain: Domain | None = None
    taxonomy: str | Taxonomy | None = None  # a built-in one, or a YAML file
    ids: str | None = None  # what label values mean: a table or a YAML file
    skip_bad: bool = False  # leave bad samples out and list them; otherwise the first one stops the import
    kind: str | None = None  # the layout, a key of FORMATS; default: detected
    images: str | None = None  # pattern of the images; without ``labels`` there are no labels
    labels: str | None = None  # pattern of the labels
    only: str | None = None  # a shell pattern that image ids have to match
    size: tuple[int, int] | None = None  # (width, height) to resize to
    crop: Box | None = None  # (left, top, right, bottom) in pixels of the source, cut out before resizing
    splits: tuple[str, ...] | None = None  # which of the source's own splits; default: all
    shares: dict[str, float] | None = None  # split → share of the images: new splits, by sequence
    seed: int = 0  # of new splits
    limit: int | None = None  # images per split, the first ones by name
    allow_unlabelled: bool = False  # images may lack a label in a split that has labels

    def recorded(self, form: Format, kind: str) -> dict[str, Any]:
        """What the manifest keeps: the fields that decide the content, with the layout's patterns filled in."""
        fields = {"only", "size", "crop", "splits", "shares", "seed", "limit", "allow_unlabelled"}
        kept = self.model_dump(mode="json", include=fields)
        return kept | {"kind": kind, "images": form.images, "labels": form.labels, "shares": self.shares or None}


def import_dataset(
    source: str | Path,
    target: str | Path,
    options: ImportOptions | None = None,
    *,
    workers: int | None = None,
    listing: Listing | None = None,
    progress: OnProgress = lambda done, total, note: None,
) -> Manifest:
    """Import a folder, or an address, in a known layout as a data set.

    8-bit RGB JPEG and PNG files are taken over byte by byte unless they are cropped or resized.

    Args:
        workers: tasks at once; default: one for each CPU of the cluster.
        listing: of the source, if it was made before.

    Raises:
        BadItem: a sample breaks a rule; the message names the file and the rule.
        UserError: the source has not that layout, has no images, or the target cannot be written.
    """
    options = options or ImportOptions()
    if options.kind is not None and options.kind not in FORMATS:
        raise UserError(f"no importer {options.kind!r}; there are: {', '.join(FORMATS)}")
    _check_numbers(options)
    check_target(target)
    listing = listing or list_pictures(source)
    kind = options.kind or ("folder" if options.images else detect_layout(listing))
    if kind is None:
        raise UserError(f"{without_secrets(source)}: no layout that an importer knows; name it with --kind or --images")
    form = _choose_format(kind, source, listing, options)
    taxonomy = options.taxonomy or form.taxonomy
    classes = taxonomy if isinstance(taxonomy, Taxonomy) else get_taxonomy(taxonomy)
    layout = FORMATS[kind].table
    table = _choose_table(form, classes, read_table(layout) if layout else None)
    if table.colours and form.read_label is read_ids:
        form = replace(form, read_label=read_colours)
    found = _find_pairs(kind, source, listing, form, options)
    chosen = _choose_items(source, found, options)
    encode = partial(
        encode_pair,
        table=table,
        ids=table.to(classes),
        read_label=form.read_label,
        size=options.size,
        crop=options.crop,
    )
    _probe(chosen, encode, classes, options.skip_bad, own_ids=form.table is None)
    tables = {"dropped": table.dropped(classes), "table": table.model_dump(mode="json")}
    described = {
        "name": options.name or Path(str(target).partition("?")[0]).name,
        "domain": form.domain,
        "taxonomy": classes,
        "source": f"{kind}:{without_secrets(absolute(source))}",
        "options": options.recorded(form, kind) | tables,
    }
    return write_dataset(
        target,
        chosen,
        encode,
        validated(Description, described),
        skip_bad=options.skip_bad,
        skipped=found.bad,
        workers=workers,
        progress=progress,
    )


def _check_numbers(options: ImportOptions) -> None:
    size, crop, limit = options.size, options.crop, options.limit
    if size is not None and min(size) < 1:
        raise UserError(f"size {size}: expected (width, height) in pixels")
    if crop is not None and not (0 <= crop[0] < crop[2] and 0 <= crop[1] < crop[3]):
        raise UserError(f"crop {crop}: expected (left, top, right, bottom) in pixels")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit}: expected at least 1 image per split")


def _choose_format(kind: str, source: str | Path, listing: Listing, options: ImportOptions) -> Format:
    """The layout, with the user's options in place of its own."""
    form = FORMATS[kind]
    if kind == "folder" and options.images is None:
        form = fit_folder(source, listing, form)
    return replace(
        form,
        images=options.images or form.images,
        labels=options.labels if options.images or options.labels else form.labels,
        table=options.ids or form.table,
        domain=options.domain or form.domain,
    )


def _choose_table(form: Format, classes: Taxonomy, own: Table | None) -> Table:
    """What label values mean: the layout's own table, the user's, or the ids of the taxonomy.

    A table of the user's that has only colours adds them to the layout's palette.
    """
    if not form.table:
        return own_ids(classes)
    table = read_table(form.table)
    if own is not None and own.colours and table.colours and len(table.colours) == len(table.ids):
        table = extend(own, table)
    if set(table.to(classes).values()) == {IGNORE}:
        raise UserError(
            f"none of the names in the id table {form.table} is a class of {classes.name}: {', '.join(classes.classes)}"
        )
    return table


def _find_pairs(kind: str, source: str | Path, listing: Listing, form: Format, options: ImportOptions) -> Paired:
    """The images of the source with their labels, and complaints where there are none."""
    found = pair(
        source,
        listing,
        form.images,
        form.labels,
        sequence=form.sequence,
        unlabelled_splits=form.unlabelled,
        allow_unlabelled=options.allow_unlabelled,
        only=options.only,
    )
    if form.only_labelled:
        labelled = {split: items for split, items in found.splits.items() if any(item.label for item in items)}
        found = found._replace(splits=labelled)
    shown = without_secrets(source)
    if not found.splits and not found.bad and options.only is not None:
        raise UserError(f"{shown}: no image id matches --only {options.only}")
    if not found.splits and not found.bad:
        looks = detect_layout(listing)
        hint = f"; it looks like {looks}" if looks not in (None, kind) else ""
        raise UserError(f"{shown}: not the layout of {kind}: no picture is at {form.images}{hint}")
    if found.bad and not options.skip_bad:
        first, more = found.bad[0], len(found.bad) - 1
        raise BadItem(first.file, f"{first.rule} (and {more} more bad files)" if more else first.rule)
    if form.labels and not any(item.label for items in found.splits.values() for item in items):
        missing = f"{shown}: no label is at {form.labels}"
        if options.labels:
            raise UserError(missing)
        warnings.warn(f"{missing}: the images are imported without labels", stacklevel=3)
    return found


def _choose_items(source: str | Path, found: Paired, options: ImportOptions) -> dict[str, list[Item]]:
    """The items of every split that is asked for."""
    unknown = sorted(set(options.splits or ()) - found.splits.keys())
    if unknown:
        raise UserError(
            f"{without_secrets(source)}: has no split {', '.join(unknown)}; there are: {', '.join(found.splits)}"
        )
    own = {split: items for split, items in found.splits.items() if not options.splits or split in options.splits}
    if options.shares is not None:
        # Photographs that nobody labelled would make a test split that tests nothing.
        pool = {split: items for split, items in own.items() if any(item.label for item in items)} or own
        ids = [item.id for items in pool.values() for item in items]
        if len(set(ids)) < len(ids):
            pool = {
                split: [item._replace(id=f"{split}/{item.id}", sequence=f"{split}/{item.sequence}") for item in items]
                for split, items in pool.items()
            }
        own = split_by_sequence([item for items in pool.values() for item in items], options.shares, options.seed)
    return {split: items[: options.limit] for split, items in own.items()}


def _probe(
    splits: Mapping[str, Sequence[Item]],
    encode: Callable[[Item], StoredRow],
    taxonomy: Taxonomy,
    skip_bad: bool,
    own_ids: bool,
) -> None:
    """Read a few labels of every split before the work starts: labels that are all void, or streets without road.

    Args:
        own_ids: the labels are taken to hold the taxonomy's own ids.

    Raises:
        UserError: every pixel of them is void, or they look like the ids of another taxonomy.
        BadItem: one of them breaks a rule, and ``skip_bad`` is off.
    """
    labels: list[np.ndarray] = []
    first = None
    for items in splits.values():
        labelled = [item for item in items if item.label is not None]
        for item in labelled[:: max(1, len(labelled) // PROBED)][:PROBED]:
            try:
                with warnings.catch_warnings(action="ignore"):  # the import itself says it
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
        lower = lower[lower != IGNORE]
        share = float((lower == road).mean()) if len(lower) else 0.0
        if share < ROAD_BELOW:
            if own_ids and taxonomy.name in BUILT_IN:
                _refuse_ids_of_another(lower, taxonomy, share)
            warnings.warn(
                f"road covers {share:.1%} of the lower quarter of {len(labels)} labels: in street scenes a sign of the "
                "wrong id table; compare the contact sheet (raydelta data show), --kind and --ids",
                stacklevel=3,
            )


def _refuse_ids_of_another(lower: np.ndarray, taxonomy: Taxonomy, share: float) -> None:
    """Complain if road would be where a road is with the ids of another built-in taxonomy."""
    for other in BUILT_IN.values():
        covered = float((lower == other.find("road")).mean()) if len(lower) and lower.max() < len(other) else 0.0
        if covered > ROAD_LIKELY:
            raise UserError(
                f"read as ids of {taxonomy.name}, road covers {share:.1%} of the lower quarter of the labels; read as "
                f"ids of {other.name} it covers {covered:.0%}. Say which they are: --ids {other.name} maps them to "
                f"{taxonomy.name} by name (--taxonomy {other.name} keeps them), --ids {taxonomy.name} takes them as "
                "they are"
            )
