"""The on-disk format: Parquet shards and a manifest, and how they are read and decoded.

A data set is a folder of ``SPLIT-00000.parquet`` files and a ``manifest.json``, written last. A row is one image with
its label, both still encoded, so that a shard streams from anywhere pyarrow or fsspec can read.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.errors import UserError
from raydelta.storage import absolute, join, open_address, open_file_address, without_secrets

FORMAT = 1
MANIFEST = "manifest.json"
FOOTER = b"raydelta"  # key of the shard's own record in the Parquet footer
ROWS_PER_GROUP = 16  # the smallest piece that a reader of a few ids has to fetch

# What Pillow raises on a broken file; SyntaxError is its word for a broken PNG chunk.
UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("sequence", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.binary()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)

Domain = Literal["synthetic", "real"]

OnProgress = Callable[[int, int, str], None]
"""Called with rows done, rows in all and the file just finished."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class StoredRow(TypedDict):
    """One sample as stored: JPEG or PNG bytes, and an 8-bit single-channel PNG of taxonomy ids or None."""

    id: str
    sequence: str
    image: bytes
    label: bytes | None
    height: int
    width: int


class Item(NamedTuple):
    """One sample before it is encoded."""

    id: str
    sequence: str
    image: str  # whatever the encoder finds the pixels by: a path, a simulator's index
    label: str | None
    version: str = ""  # changes when the content does, so that an interrupted write does not keep what is outdated


class Sample(NamedTuple):
    """What is known of a row without reading its pixels."""

    id: str
    sequence: str
    labelled: bool


class BadItem(UserError):  # noqa: N818 - the sample is bad, not the program
    """A sample that breaks a rule of the format; ``skip_bad`` leaves such samples out."""

    def __init__(self, file: str | Path, rule: str) -> None:
        super().__init__(str(file), rule)
        # A file name need not be text; a manifest is.
        self.file = without_secrets(file).encode(errors="backslashreplace").decode()
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Skipped(Record):
    """A bad sample that was left out, and the rule it broke."""

    file: str
    rule: str


class Shard(Record):
    """One Parquet file of the data set."""

    # The name is joined to the data set's address: a foreign manifest must not lead out of it.
    file: str = Field(pattern=r"^[A-Za-z0-9_-]+-\d{5,}\.parquet$")
    rows: int
    labelled: int
    bytes: int
    sha256: str


class Split(Record):
    """The shards of a split, and how many of its pixels carry which class."""

    shards: list[Shard]
    pixels: list[int]  # per class
    void: int

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def labelled(self) -> int:
        return sum(shard.labelled for shard in self.shards)


class Description(Record):
    """What a data set is, and where it came from."""

    name: str
    domain: Domain
    taxonomy: Taxonomy
    source: str
    options: dict[str, Any]  # all that decides the content beside its items; JSON values


class Manifest(Description):
    """A data set's description and what lies in its shards."""

    format: int = FORMAT
    splits: dict[str, Split]
    skipped: list[Skipped] = []


class Footer(Record):
    """What a shard says about itself, so that an interrupted write can go on from the files alone."""

    inputs: str  # digest of all that decides the shard's content
    pixels: list[int]
    void: int
    unlabelled: list[str]
    skipped: list[Skipped]


def read_manifest(uri: str | Path) -> Manifest:
    """The manifest of a data set: a folder, or any address that pyarrow or fsspec knows (``s3://bucket/set``).

    Raises:
        UserError: there is none, it is damaged, or a newer raydelta wrote it.
    """
    files, base = open_address(uri)
    try:
        with files.open_input_file(f"{base}/{MANIFEST}") as file:
            text = file.read()
    except FileNotFoundError as error:
        begun = files.get_file_info(pyarrow.fs.FileSelector(base, allow_not_found=True))
        partial_write = files.get_file_info(f"{base}.partial").type == pyarrow.fs.FileType.Directory
        partial_write |= any(info.extension == "parquet" for info in begun)
        hint = "its import was interrupted: run the same command again" if partial_write else f"it has no {MANIFEST}"
        raise UserError(f"{without_secrets(uri)}: not a data set: {hint}") from error
    except OSError as error:
        raise UserError(f"{without_secrets(uri)}: {MANIFEST} cannot be read: {error}") from error
    try:
        tree = json.loads(text)
        if isinstance(tree, dict) and isinstance(tree.get("format"), int) and tree["format"] > FORMAT:
            newer = f"format {tree['format']} is newer than this raydelta reads ({FORMAT}): update it"
            raise UserError(f"{without_secrets(uri)}: {newer}")
        return Manifest.model_validate(tree)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{without_secrets(uri)}: {MANIFEST} is damaged: {error}") from error


def data_fingerprint(uri: str | Path) -> str:
    """A digest of what a data set holds: its classes and the checksums of its shards, wherever it lies."""
    manifest = read_manifest(uri)
    checksums = {name: [shard.sha256 for shard in split.shards] for name, split in manifest.splits.items()}
    content = json.dumps([manifest.taxonomy.classes, checksums], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def shard_paths(uri: str | Path, split: str) -> list[str]:
    """The addresses of a split's shards, in order."""
    return [join(absolute(uri), shard.file) for shard in _split(uri, split).shards]


def list_ids(uri: str | Path, split: str) -> list[Sample]:
    """Id, sequence and whether there is a label for every row of a split; reads no pixels."""

    def read(shard: Shard) -> list[Sample]:
        with _parquet(uri, shard) as file:
            table = file.read(["id", "sequence"])
            unlabelled = set(Footer.model_validate_json(file.metadata.metadata[FOOTER]).unlabelled)
        return [
            Sample(identifier, sequence, identifier not in unlabelled)
            for identifier, sequence in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        ]

    return [sample for samples in threaded(read, _split(uri, split).shards) for sample in samples]


def read_rows(
    uri: str | Path,
    split: str,
    ids: Collection[str] | None = None,
    columns: Sequence[str] = tuple(SCHEMA.names),
) -> pa.Table:
    """Rows of a split as stored (the columns of ``StoredRow``), in the data set's order; all, or those of the ids.

    Raises:
        UserError: unknown split or id, missing or damaged shard.
    """
    wanted = None if ids is None else pa.array(sorted(ids), pa.string())

    def read(shard: Shard) -> pa.Table:
        with _parquet(uri, shard) as file:
            if wanted is None:
                return file.read(list(columns))
            parts = [SCHEMA.empty_table().select(list(columns))]
            for group in range(file.num_row_groups):
                rows = pc.is_in(file.read_row_group(group, ["id"])["id"], wanted)
                if pc.any(rows).as_py():
                    parts.append(file.read_row_group(group, list(columns)).filter(rows))
            return pa.concat_tables(parts)

    table = pa.concat_tables(threaded(read, _split(uri, split).shards))
    if ids is not None and table.num_rows != len(set(ids)):
        unknown = sorted(set(ids) - {sample.id for sample in list_ids(uri, split)})
        these = f"{', '.join(unknown[:5])} ({len(unknown)} of {len(ids)} unknown)"
        raise UserError(f"{without_secrets(uri)}: split {split!r} has no id {these}")
    return table


def read_groups(address: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of one shard, a few at a time.

    Raises:
        UserError: missing or damaged shard.
    """
    with _opened(address) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, list(columns))


def read_group(address: str, group: int) -> pa.Table:
    """The rows of one group of a shard, all columns.

    Raises:
        UserError: missing or damaged shard.
    """
    with _opened(address) as file:
        return file.read_row_group(group)


def decode(
    rows: pa.Table | Mapping[str, Iterable[Any]],
    size: tuple[int, int] | None,
    with_labels: bool,
    num_classes: int,
) -> dict[str, Any]:
    """Rows → ``id`` (list), ``image`` uint8 [N, 3, H, W] and, if asked for, ``label`` uint8 [N, H, W].

    Args:
        rows: a table, or a batch of Ray Data, with the columns id, image and (``with_labels``) label.
        size: (width, height) to resize to, images smoothly and labels to the nearest pixel; None leaves them as they
            are, which takes rows of one size.
        with_labels: a row without a label has 255 all over.

    Raises:
        UserError: a row cannot be decoded, has ids outside 0..num_classes-1 and 255, or differs in size.
    """
    ids, images = _column(rows, "id"), _column(rows, "image")
    labels = _column(rows, "label") if with_labels else []
    if size is None and not ids:
        raise UserError("no rows to decode, and no size given")
    with _decoding(ids[0] if ids else ""):
        shape = size or Image.open(io.BytesIO(images[0])).size
    pixels = np.empty((len(ids), 3, shape[1], shape[0]), dtype=np.uint8)
    masks = np.full((len(labels), shape[1], shape[0]), IGNORE, dtype=np.uint8)

    def fill(index: int) -> None:
        with _decoding(ids[index]):
            image = Image.open(io.BytesIO(images[index]))
            if size is None and image.size != shape:
                raise ValueError(f"its size is {image.size}, the first one's {shape}: give a size")
            image.draft("RGB", shape)  # JPEG only: decodes at 1/2, 1/4 or 1/8 where that is still large enough
            pixels[index] = np.asarray(_resize(image, shape, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            if with_labels and labels[index] is not None:
                label = Image.open(io.BytesIO(labels[index]))
                masks[index] = np.asarray(_resize(label, shape, Image.Resampling.NEAREST))
                outside = np.unique(masks[index][(masks[index] >= num_classes) & (masks[index] != IGNORE)])
                if len(outside):
                    raise ValueError(f"its label has the ids {outside.tolist()}, and there are {num_classes} classes")

    threaded(fill, range(len(ids)))
    decoded: dict[str, Any] = {"id": ids, "image": pixels}
    return decoded | {"label": masks} if with_labels else decoded


def decode_label(encoded: bytes) -> NDArray[np.uint8]:
    """The ids of a stored label, [H, W]."""
    return np.asarray(Image.open(io.BytesIO(encoded)))


def _resize(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, method)


@contextmanager
def _decoding(identifier: str) -> Iterator[None]:
    try:
        yield
    except UNDECODABLE as error:
        raise UserError(f"row {identifier!r} cannot be decoded: {error}") from error


def _column(rows: pa.Table | Mapping[str, Iterable[Any]], name: str) -> list[Any]:
    column = rows[name]
    return column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)


def _split(uri: str | Path, split: str) -> Split:
    splits = read_manifest(uri).splits
    if split not in splits:
        raise UserError(f"{without_secrets(uri)}: there is no split {split!r}; there are: {', '.join(splits)}")
    return splits[split]


def _parquet(uri: str | Path, shard: Shard) -> AbstractContextManager[pq.ParquetFile]:
    return _opened(join(absolute(uri), shard.file))


@contextmanager
def _opened(address: str) -> Iterator[pq.ParquetFile]:
    files, path = open_file_address(address)
    try:
        with files.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
            # Ray registers a column type whose values are pickles: reading a stranger's would run his code.
            if not file.schema_arrow.equals(SCHEMA):
                raise UserError(f"{without_secrets(address)}: its columns are not those of a shard; not read")
            yield file
    except (OSError, pa.ArrowException, KeyError, ValidationError) as error:
        raise UserError(
            f"{without_secrets(address)}: shard cannot be read: {error}; `raydelta data check` says more"
        ) from error


def threaded(function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> list[Result]:
    """Map in threads: decoding, hashing and waiting for storage all leave the interpreter free."""
    # Ray gives a worker that owns one CPU OMP_NUM_THREADS=1, and ten of them must not start ten threads each.
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if threads == 1:
        return [function(argument) for argument in arguments]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, arguments))


def format_skipped(skipped: Sequence[Skipped]) -> str:
    """How many samples were left out, by rule, and which."""
    lines = [f"{len(skipped)} skipped"]
    for rule, count in Counter(bad.rule for bad in skipped).most_common():
        lines.append(f"  {count} × {rule}")
        lines += [f"      {bad.file}" for bad in skipped if bad.rule == rule]
    return "\n".join(lines)


def is_plain(identifier: str) -> bool:
    """Whether an id can name a file below a folder of ours: relative, no step upwards, nothing invisible."""
    return identifier.isprintable() and "\\" not in identifier and not {"", ".", ".."} & set(identifier.split("/"))


def count_pixels(histogram: NDArray[np.int64], classes: int) -> tuple[list[int], int]:
    """Pixels per class, and void ones."""
    return histogram[:classes].tolist(), int(histogram[IGNORE])
