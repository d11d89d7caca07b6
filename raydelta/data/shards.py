"""The on-disk format: Parquet shards and a manifest, and how they are read.

A data set is a folder of ``SPLIT-00000.parquet`` files and a ``manifest.json``, written last. A row is one image with
its label, both still encoded, so that a shard streams from anywhere pyarrow or fsspec can read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raydelta.data.decoding import threaded
from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.errors import UserError, printable
from raydelta.parsing import MAX_BYTES, parse_json
from raydelta.storage.files import BUFFER, absolute, join, open_address, open_file_address, read_bytes, without_secrets

FORMAT = 1
MANIFEST = "manifest.json"
FOOTER = b"raydelta"  # key of the shard's own record in the Parquet footer
ROWS_PER_GROUP = 16  # the smallest piece that a reader of a few ids has to fetch
MAX_NAME = 150  # characters of the name of a data set
CODECS = {"UNCOMPRESSED", "SNAPPY"}  # the others can make gigabytes of a few kilobytes
MAX_BATCH = 2**30  # bytes of so many encoded rows
IDS_AT_ONCE = 128
MAX_ID = 1000  # bytes of an id, and of a sequence

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


Count = Annotated[int, Field(ge=0)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]


class Shard(Record):
    """One Parquet file of the data set."""

    # The name is joined to the data set's address: a foreign manifest must not lead out of it.
    file: str = Field(pattern=r"^[A-Za-z0-9_-]+-[0-9]{5,}\.parquet$")
    rows: Count
    labelled: Count
    bytes: Count
    sha256: str


class Split(Record):
    """The shards of a split, and how many of its pixels carry which class."""

    shards: list[Shard]
    pixels: list[Count]  # per class
    void: Count

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

    @field_validator("name")
    @classmethod
    def _names_a_file(cls, name: str) -> str:
        """Pictures of the data set are named after it."""
        if not is_plain(name) or "/" in name or len(name) > MAX_NAME:
            raise ValueError(f"the name of a data set has to be a plain file name of at most {MAX_NAME} characters")
        return name


class Manifest(Description):
    """A data set's description and what lies in its shards."""

    format: int = FORMAT
    splits: dict[SplitName, Split]
    skipped: list[Skipped] = []

    @model_validator(mode="after")
    def _counts_every_class(self) -> Self:
        for name, split in self.splits.items():
            if len(split.pixels) != len(self.taxonomy):
                raise ValueError(f"split {name} counts {len(split.pixels)} classes, not {len(self.taxonomy)}")
        return self


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
        text = read_bytes(join(absolute(uri), MANIFEST), MAX_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{without_secrets(uri)}: not a data set: {_what_is_there(files, base)}") from error
    except OSError as error:
        raise UserError(f"{without_secrets(uri)}: {MANIFEST} cannot be read: {error}") from error
    try:
        tree = parse_json(text)
        if isinstance(tree, dict) and isinstance(tree.get("format"), int) and tree["format"] > FORMAT:
            newer = f"format {tree['format']} is newer than this raydelta reads ({FORMAT}): update it"
            raise UserError(f"{without_secrets(uri)}: {newer}")
        return Manifest.model_validate(tree)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{without_secrets(uri)}: {MANIFEST} is damaged: {error}") from error


def _what_is_there(files: pyarrow.fs.FileSystem, base: str) -> str:
    """Why a folder without a manifest may have none."""
    try:
        begun = files.get_file_info(pyarrow.fs.FileSelector(base, allow_not_found=True))
        interrupted = files.get_file_info(f"{base}.partial").type == pyarrow.fs.FileType.Directory
    except OSError as error:
        return f"it cannot be listed: {error}"
    interrupted |= any(info.extension == "parquet" for info in begun)
    return "its import was interrupted: run the same command again" if interrupted else f"it has no {MANIFEST}"


def data_fingerprint(uri: str | Path) -> str:
    """A digest of what a data set holds: its classes and the checksums of its shards, wherever it lies."""
    manifest = read_manifest(uri)
    checksums = {name: [shard.sha256 for shard in split.shards] for name, split in manifest.splits.items()}
    content = json.dumps([manifest.taxonomy.classes, checksums], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def list_shards(uri: str | Path, split: str) -> list[tuple[str, Shard]]:
    """The shards of a split with their addresses, in order."""
    return [(_address(uri, shard), shard) for shard in _split(uri, split).shards]


def list_ids(uri: str | Path, split: str) -> list[Sample]:
    """Id, sequence and whether there is a label for every row of a split; reads no pixels.

    Raises:
        UserError: unknown split, missing or damaged shard.
    """

    def read(shard: Shard) -> list[Sample]:
        with _opened(_address(uri, shard), shard) as file:
            unlabelled = set(read_footer(file.metadata).unlabelled)
            return [
                Sample(identifier, sequence, identifier not in unlabelled)
                for batch in read_batches(file, ["id", "sequence"])
                for identifier, sequence in zip(batch["id"].to_pylist(), batch["sequence"].to_pylist(), strict=True)
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
    wanted = None if ids is None else set(ids)

    def read(shard: Shard) -> pa.Table:
        empty = SCHEMA.empty_table().select(list(columns))
        return pa.concat_tables([empty, *read_groups(_address(uri, shard), columns, wanted, shard)])

    table = pa.concat_tables(threaded(read, _split(uri, split).shards))
    if wanted is not None and table.num_rows != len(wanted):
        unknown = sorted(wanted - {sample.id for sample in list_ids(uri, split)})
        these = f"{', '.join(unknown[:5])} ({len(unknown)} of {len(wanted)} unknown)"
        raise UserError(f"{without_secrets(uri)}: split {split!r} has no id {these}")
    return table


def read_groups(
    address: str,
    columns: Sequence[str],
    ids: Collection[str] | None = None,
    shard: Shard | None = None,
    verify: bool = False,
) -> Iterator[pa.Table]:
    """The rows of one shard, at most ``ROWS_PER_GROUP`` at a time.

    Args:
        ids: only these; what has none of them is not read.
        shard: what the manifest says of it.
        verify: the first time in this process, read the whole file before and compare its checksum.

    Raises:
        UserError: missing or damaged shard, or not the one of the manifest.
    """
    wanted = None if ids is None else pa.array(sorted(ids), pa.string())
    with _opened(address, shard, verify) as file:
        for group in range(file.num_row_groups):
            if wanted is not None and not any(
                pc.any(pc.is_in(batch["id"], wanted)).as_py() for batch in read_batches(file, ["id"], group)
            ):
                continue
            for batch in read_batches(file, columns, group):
                table = pa.Table.from_batches([batch]).select(list(columns))
                yield table if wanted is None else table.filter(pc.is_in(table["id"], wanted))


class Place(NamedTuple):
    """Where a row is in its shard."""

    id: str
    sequence: str
    group: int
    row: int  # in the group


def list_places(address: str, shard: Shard) -> list[Place]:
    """Where each row of a shard is; reads no pixels.

    Raises:
        UserError: missing or damaged shard.
    """
    places: list[Place] = []
    with _opened(address, shard) as file:
        for group in range(file.num_row_groups):
            found = [row for batch in read_batches(file, ["id", "sequence"], group) for row in batch.to_pylist()]
            places += [Place(row["id"], row["sequence"], group, number) for number, row in enumerate(found)]
    return places


def read_group(address: str, group: int) -> pa.Table:
    """The rows of one group of a shard, all columns.

    Raises:
        UserError: missing or damaged shard.
    """
    with _opened(address) as file:
        if group >= file.num_row_groups:
            raise ValueError(f"it has only {file.num_row_groups} row groups")
        return pa.Table.from_batches(read_batches(file, SCHEMA.names, group), SCHEMA)


def read_batches(file: pq.ParquetFile, columns: Sequence[str], group: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, or of one of its row groups, in small batches.

    A few kilobytes of Parquet can stand for gigabytes, so no more is read at once than the format allows.

    Raises:
        ValueError: rows or ids that are too large.
    """
    groups = None if group is None else [group]
    at_once = ROWS_PER_GROUP if {"image", "label"} & set(columns) else IDS_AT_ONCE
    for batch in file.iter_batches(at_once, row_groups=groups, columns=list(columns)):
        if batch.nbytes > MAX_BATCH:
            raise ValueError(f"{len(batch)} rows of more than {MAX_BATCH // 2**20} MiB")
        for name in {"id", "sequence"} & set(columns):
            if (pc.max(pc.binary_length(batch[name])).as_py() or 0) > MAX_ID:
                raise ValueError(f"an {name} of more than {MAX_ID} bytes")
        yield batch


def read_footer(metadata: pq.FileMetaData) -> Footer:
    """What a shard says about itself.

    Raises:
        ValueError: nothing, or not in this format.
    """
    own = (metadata.metadata or {}).get(FOOTER)
    if own is None:
        raise ValueError("its footer has no record of raydelta's")
    return Footer.model_validate(parse_json(own))


def _split(uri: str | Path, split: str) -> Split:
    splits = read_manifest(uri).splits
    if split not in splits:
        raise UserError(f"{without_secrets(uri)}: there is no split {split!r}; there are: {', '.join(splits)}")
    return splits[split]


def _address(uri: str | Path, shard: Shard) -> str:
    return join(absolute(uri), shard.file)


_verified: set[tuple[str, str]] = set()
"""Addresses and checksums of shards that this process has compared: once is enough."""


@contextmanager
def _opened(address: str, shard: Shard | None = None, verify: bool = False) -> Iterator[pq.ParquetFile]:
    """A shard, if it can be one: its columns and their compression are looked at before anything is read."""
    files, path = open_file_address(address)
    shown = without_secrets(address)
    try:
        with files.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
            check_columns(file)
            if shard is not None and file.metadata.num_rows != shard.rows:
                raise ValueError(f"it has {file.metadata.num_rows} rows, {shard.rows} in the manifest")
            if shard is not None and verify and (address, shard.sha256) not in _verified:
                if digest_of(files, path) != shard.sha256:
                    raise ValueError("its checksum is not the manifest's: it was changed, or copied only in part")
                _verified.add((address, shard.sha256))
            yield file
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{shown}: shard cannot be read: {error}; `raydelta data check` says more") from error


def digest_of(files: pyarrow.fs.FileSystem, path: str) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with files.open_input_stream(path) as stream:
        while piece := stream.read(BUFFER):
            digest.update(piece)
    return digest.hexdigest()


def check_columns(file: pq.ParquetFile) -> None:
    """Refuse a Parquet file that is no shard.

    Raises:
        ValueError: its columns are others, or are compressed so that a few bytes may stand for gigabytes.
    """
    # Ray registers a column type whose values are pickles: reading a stranger's would run his code.
    if not file.schema_arrow.equals(SCHEMA):
        raise ValueError("its columns are not those of a shard")
    metadata = file.metadata
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    codecs = {group.column(number).compression for group in groups for number in range(group.num_columns)}
    if codecs - CODECS:
        raise ValueError(f"it is compressed with {', '.join(sorted(codecs - CODECS))}, which shards are not")


def format_skipped(skipped: Sequence[Skipped]) -> str:
    """How many samples were left out, by rule, and which."""
    lines = [f"{len(skipped)} skipped"]
    for rule, count in Counter(bad.rule for bad in skipped).most_common():
        lines.append(f"  {count} × {rule}")
        lines += [f"      {bad.file}" for bad in skipped if bad.rule == rule]
    return printable("\n".join(lines))


def is_plain(identifier: str) -> bool:
    """Whether an id can name a file below a folder of ours: relative, no step upwards, nothing invisible."""
    return identifier.isprintable() and "\\" not in identifier and not {"", ".", ".."} & set(identifier.split("/"))


def count_pixels(histogram: NDArray[np.int64], classes: int) -> tuple[list[int], int]:
    """Pixels per class, and void ones."""
    return histogram[:classes].tolist(), int(histogram[IGNORE])
