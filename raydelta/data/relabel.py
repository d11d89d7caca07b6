"""A copy of a data set with new labels for some images of its training split."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from raydelta.data.shards import (
    Description,
    Item,
    Manifest,
    OnProgress,
    StoredRow,
    list_ids,
    read_group,
    read_groups,
    read_manifest,
    shard_paths,
)
from raydelta.data.writing import write_dataset
from raydelta.errors import UserError

SPLIT = "train"


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
    splits: dict[str, list[Item]] = {}
    for split, part in manifest.splits.items():
        splits[split] = []
        for path, shard in zip(shard_paths(data, split), part.shards, strict=True):
            for group, rows in enumerate(read_groups(path, ["id", "sequence"])):
                for place, row in enumerate(rows.to_pylist()):
                    digest = digests.get(row["id"]) if split == SPLIT else None
                    image = f"{path}#{group}#{place}"
                    splits[split].append(Item(row["id"], row["sequence"], image, digest, version=shard.sha256))
    description = Description(
        name=manifest.name,
        domain=manifest.domain,
        taxonomy=manifest.taxonomy,
        source=manifest.source,
        options={**manifest.options, "relabelled": source},
    )
    encode = functools.partial(_encode, labels={digests[name]: label for name, label in labels.items()})
    return write_dataset(target, splits, encode, description, progress=progress)


def _encode(item: Item, labels: Mapping[str, bytes]) -> StoredRow:
    """The stored row, with its new label if there is one; ``item.label`` is the label's digest."""
    path, group, place = item.image.rsplit("#", 2)
    stored: StoredRow = _read_group(path, int(group), item.version)[int(place)]
    assert stored["id"] == item.id
    return stored if item.label is None else {**stored, "label": labels[item.label]}


@functools.lru_cache(maxsize=1)  # the rows of a shard come one by one
def _read_group(path: str, group: int, version: str) -> list[StoredRow]:
    return read_group(path, group).to_pylist()
