"""A copy of a data set with other labels: new ones for some images, or the same in the classes of another taxonomy."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydelta.data.decoding import decode_label
from raydelta.data.shards import (
    Description,
    Item,
    Manifest,
    OnProgress,
    StoredRow,
    list_ids,
    list_places,
    list_shards,
    read_group,
    read_manifest,
)
from raydelta.data.tables import own_ids
from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.data.writing import encode_label, write_dataset
from raydelta.errors import UserError
from raydelta.storage.files import without_secrets

SPLIT = "train"
ENOUGH = 2  # classes that two taxonomies have to share for a conversion


def write_with_labels(
    data: str,
    target: str | Path,
    labels: Mapping[str, bytes],
    source: str,
    progress: OnProgress = lambda done, total, note: None,
) -> Manifest:
    """Write a data set that differs from another one in some labels of the training split; images stay as they are.

    Args:
        labels: id → 8-bit PNG of class ids, in place of the label that there is, if any.
        source: where the labels come from, for the manifest.

    Raises:
        UserError: the data set cannot be read or has no such ids, or the target exists already.
    """
    manifest = read_manifest(data)
    unknown = sorted(set(labels) - {sample.id for sample in list_ids(data, SPLIT)})
    if unknown:
        raise UserError(f"{data}: split {SPLIT!r} has no images {', '.join(unknown[:5])} ({len(unknown)} unknown)")
    digests = {name: hashlib.sha256(label).hexdigest() for name, label in labels.items()}
    splits = {split: _list_items(data, split, digests if split == SPLIT else {}) for split in manifest.splits}
    description = Description(
        name=manifest.name,
        domain=manifest.domain,
        taxonomy=manifest.taxonomy,
        source=manifest.source,
        options={**manifest.options, "relabelled": source},
    )
    encode = functools.partial(_encode, labels={digests[name]: label for name, label in labels.items()})
    return write_dataset(target, splits, encode, description, progress=progress)


def convert_dataset(
    data: str | Path,
    target: str | Path,
    taxonomy: Taxonomy,
    progress: OnProgress = lambda done, total, note: None,
) -> Manifest:
    """Copy a data set with its labels as ids of another taxonomy, by name; what has no class there becomes void.

    Raises:
        UserError: the two have hardly a class in common, the data set cannot be read, or the target exists already.
    """
    manifest = read_manifest(data)
    table = own_ids(manifest.taxonomy)
    ids = table.to(taxonomy)
    if len(set(ids.values()) - {IGNORE}) < ENOUGH:
        raise UserError(
            f"{without_secrets(data)} has the classes {', '.join(manifest.taxonomy.classes)}, and the other set has "
            f"{', '.join(taxonomy.classes)} ({taxonomy.name}): import both with one taxonomy, or name the same classes "
            "under `also:` in its file"
        )
    lookup = np.full(256, IGNORE, dtype=np.uint8)
    lookup[list(ids)] = list(ids.values())
    description = Description(
        name=manifest.name,
        domain=manifest.domain,
        taxonomy=taxonomy,
        source=manifest.source,
        options={**manifest.options, "converted_from": manifest.taxonomy.name, "dropped": table.dropped(taxonomy)},
    )
    splits = {split: _list_items(data, split, {}) for split in manifest.splits}
    return write_dataset(target, splits, functools.partial(_convert, lookup=lookup), description, progress=progress)


def _list_items(data: str | Path, split: str, digests: Mapping[str, str]) -> list[Item]:
    """Every row of a split by its place; ``label`` is the digest of its new label, if it gets one."""
    items = []
    for path, shard in list_shards(data, split):
        for place in list_places(path, shard):
            image = f"{path}#{place.group}#{place.row}"
            items.append(Item(place.id, place.sequence, image, digests.get(place.id), version=shard.sha256))
    return items


def _convert(item: Item, lookup: NDArray[np.uint8]) -> StoredRow:
    stored = _read_stored(item)
    if stored["label"] is None:
        return stored
    return {**stored, "label": encode_label(lookup[decode_label(stored["label"])])}


def _encode(item: Item, labels: Mapping[str, bytes]) -> StoredRow:
    """The stored row, with its new label if there is one; ``item.label`` is the label's digest."""
    stored = _read_stored(item)
    return stored if item.label is None else {**stored, "label": labels[item.label]}


def _read_stored(item: Item) -> StoredRow:
    path, group, row = item.image.rsplit("#", 2)
    rows = _read_group(path, int(group), item.version)
    if int(row) >= len(rows) or rows[int(row)]["id"] != item.id:
        raise UserError(f"{without_secrets(path)}: has changed while it was read; run the same command again")
    return rows[int(row)]


@functools.lru_cache(maxsize=1)  # the rows of a shard come one by one
def _read_group(path: str, group: int, version: str) -> list[StoredRow]:
    return read_group(path, group).to_pylist()
