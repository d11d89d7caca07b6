"""Checking a data set: every byte of it against its manifest and the rules of the format."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from raydelta.data.decoding import STORED, load_picture, threaded
from raydelta.data.shards import (
    MANIFEST,
    SCHEMA,
    Manifest,
    Shard,
    StoredRow,
    check_columns,
    count_pixels,
    format_skipped,
    is_plain,
    list_ids,
    read_batches,
    read_footer,
    read_manifest,
)
from raydelta.data.tables import Table
from raydelta.data.taxonomy import IGNORE
from raydelta.errors import printable
from raydelta.storage.files import BUFFER, open_address

# When shares of pixels look wrong.
ENOUGH_LABELS = 20
COMMON = 1.0  # percent; rarer classes vary too much
FAR = 6.0  # times more or less than published
MOSTLY_VOID = 50.0  # percent


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with a data set (nothing, if ``problems`` is empty), and the pixels per class as counted anew."""

    manifest: Manifest
    problems: list[str]
    histogram: dict[str, list[int]]  # per split: one count per class, then void
    published: dict[str, float]  # class → percent of all pixels in the data set it comes from, where known
    doubts: list[str]  # signs that the ids are mapped wrongly; the format is kept


def check(uri: str | Path) -> CheckReport:
    """Read every byte of a data set and compare it with its manifest and the rules of the format."""
    manifest = read_manifest(uri)
    files, base = open_address(uri)
    classes = len(manifest.taxonomy)
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    present = {info.base_name for info in files.get_file_info(pyarrow.fs.FileSelector(base))}
    problems = [f"{file}: not in the manifest" for file in sorted(present - listed - {MANIFEST})]
    histogram = {}
    for name, split in manifest.splits.items():
        results = threaded(partial(_check_shard, files, base, classes), split.shards)
        problems += [problem for found, _, _ in results for problem in found]
        counts = Counter(identifier for _, ids, _ in results for identifier in ids)
        problems += [f"split {name}: the id {key!r} occurs {count} times" for key, count in counts.items() if count > 1]
        pixels, void = count_pixels(sum((counted for _, _, counted in results), np.zeros(256, dtype=np.int64)), classes)
        if (pixels, void) != (split.pixels, split.void):
            problems.append(f"split {name}: the manifest's pixels per class are not those of the labels")
        histogram[name] = [*pixels, void]
    published = _published(manifest)
    doubts = _doubts(manifest, histogram, published)
    if not problems:
        doubts += _dependent_splits(uri, manifest)
    return CheckReport(manifest, problems, histogram, published, doubts)


def format_report(report: CheckReport) -> str:
    """Rows, labels and the share of pixels of each class per split, doubts about the mapping, then the problems."""
    manifest = report.manifest
    lines = [f"{manifest.name}: {manifest.domain}, {manifest.taxonomy.name}, from {manifest.source}"]
    for name, split in manifest.splits.items():
        lines.append(f"\n{name}: {split.rows} images, {split.labelled} labelled, {len(split.shards)} shards")
        total = sum(report.histogram[name])
        if total:
            for label, count in zip([*manifest.taxonomy.classes, "void"], report.histogram[name], strict=True):
                share = count / total
                usual = f"(published {report.published[label]:5.2f}%) " if label in report.published else ""
                lines.append(f"  {label:16} {share:7.2%} {usual}{'█' * round(50 * share)}".rstrip())
    if manifest.skipped:
        lines.append("\n" + format_skipped(manifest.skipped))
    if report.doubts:
        lines += ["", *(f"warning: {doubt}" for doubt in report.doubts)]
    lines += ["", *(report.problems or ["no problem found"])]
    return printable("\n".join(lines))


def as_json(report: CheckReport) -> str:
    """The same as JSON: pixels of each class in place of their shares."""
    manifest = report.manifest
    names = [*manifest.taxonomy.classes, "void"]
    splits = {
        name: {
            "images": split.rows,
            "labelled": split.labelled,
            "shards": len(split.shards),
            "pixels": dict(zip(names, map(int, report.histogram[name]), strict=True)),
        }
        for name, split in manifest.splits.items()
    }
    content = {
        "name": manifest.name,
        "domain": manifest.domain,
        "taxonomy": manifest.taxonomy.name,
        "splits": splits,
        "published": report.published,
        "skipped": [{"file": bad.file, "rule": bad.rule} for bad in manifest.skipped],
        "doubts": report.doubts,
        "problems": report.problems,
    }
    return json.dumps(content, indent=1)


def _published(manifest: Manifest) -> dict[str, float]:
    table = manifest.options.get("table")
    try:
        return Table.model_validate(table).shares_of(manifest.taxonomy) if table else {}
    except ValidationError:
        return {}


def _doubts(manifest: Manifest, histogram: dict[str, list[int]], published: dict[str, float]) -> list[str]:
    """What is far from the published shares, if there are enough labels to tell, and sets that are mostly void."""
    labelled = sum(split.labelled for split in manifest.splits.values())
    counts = np.sum(list(histogram.values()), axis=0)
    if not counts.sum():
        return []
    percent = dict(zip([*manifest.taxonomy.classes, "void"], 100 * counts / counts.sum(), strict=True))
    doubts = []
    if percent["void"] > MOSTLY_VOID:
        doubts.append(f"{percent['void']:.0f} % of the labelled pixels are void: is the id table the right one?")
    if labelled >= ENOUGH_LABELS:
        for name, usual in published.items():
            if usual >= COMMON and not usual / FAR <= percent[name] <= usual * FAR:
                doubts.append(
                    f"{name} covers {percent[name]:.2f} %, {usual:.1f} % as published: is the id table the right one?"
                )
    return doubts


def _dependent_splits(uri: str | Path, manifest: Manifest) -> list[str]:
    """Splits that show nothing but what train shows too, as CamVid's val: one clip out of a training sequence."""
    sequences = {name: {sample.sequence for sample in list_ids(uri, name)} for name in manifest.splits}
    seen = sequences.get("train", set())
    return [
        f"split {name}: every image is from a sequence that train has images of too ({', '.join(sorted(own)[:3])}): "
        "not an independent set"
        for name, own in sequences.items()
        if name != "train" and own <= seen
    ]


def _check_shard(
    files: pyarrow.fs.FileSystem, base: str, classes: int, shard: Shard
) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Problems, ids and the histogram of label values of one shard."""
    histogram = np.zeros(256, dtype=np.int64)
    try:
        found = files.get_file_info(f"{base}/{shard.file}")
        if found.type == pyarrow.fs.FileType.Unknown:
            return [f"{shard.file}: a pipe or device, not a file"], [], histogram
        if found.size is not None and found.size > shard.bytes + BUFFER:  # not to be held in memory
            return [f"{shard.file}: {found.size} bytes, {shard.bytes} in the manifest"], [], histogram
        with files.open_input_file(found.path) as file:
            data = file.read()
    except OSError as error:
        return [f"{shard.file}: cannot be read: {error}"], [], histogram
    problems = []
    if len(data) != shard.bytes:
        problems.append(f"{shard.file}: {len(data)} bytes, {shard.bytes} in the manifest")
    elif hashlib.sha256(data).hexdigest() != shard.sha256:
        problems.append(f"{shard.file}: its checksum is not the manifest's, the content has changed")
    ids: list[str] = []
    labelled = 0
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            check_columns(file)
            try:
                read_footer(file.metadata)
            except ValueError as error:
                problems.append(f"{shard.file}: {error}")
            for batch in read_batches(file, SCHEMA.names):
                labelled += len(batch) - batch["label"].null_count
                for row in batch.to_pylist():
                    ids.append(row["id"])
                    try:
                        histogram += _check_row(row, classes)
                    except ValueError as error:
                        problems.append(f"{shard.file}: row {row['id']!r}: {error}")
    except (OSError, pa.ArrowException, ValueError) as error:
        return [*problems, f"{shard.file}: not readable as Parquet: {error}"], [], histogram
    if (len(ids), labelled) != (shard.rows, shard.labelled):
        problems.append(
            f"{shard.file}: {len(ids)} rows, {labelled} labelled; {shard.rows} and {shard.labelled} in the manifest"
        )
    return problems, ids, histogram


def _check_row(row: StoredRow, classes: int) -> NDArray[np.int64]:
    """The histogram of the label's values; ValueError for what is wrong with the row."""
    if not is_plain(row["id"]):
        raise ValueError("the id looks like a path that leads elsewhere")
    size = row["width"], row["height"]
    image = load_picture(row["image"], STORED)
    if image.format not in ("JPEG", "PNG") or image.mode != "RGB" or image.size != size:
        raise ValueError(f"the image is {image.format} {image.mode} {image.size}, expected JPEG or PNG RGB {size}")
    if row["label"] is None:
        return np.zeros(256, dtype=np.int64)
    label = load_picture(row["label"], STORED)
    if label.format != "PNG" or label.mode != "L" or label.size != size:
        raise ValueError(f"the label is {label.format} {label.mode} {label.size}, expected PNG L {size}")
    histogram = np.array(label.histogram(), dtype=np.int64)
    outside = [value for value in np.flatnonzero(histogram).tolist() if value >= classes and value != IGNORE]
    if outside:
        raise ValueError(f"the label has the ids {outside}, outside the taxonomy's {classes} classes")
    return histogram
