"""Writing a data set: shards in parallel with Ray Data, complete or absent; an interrupted write goes on."""

import hashlib
import io
import json
import logging
import os
import re
import tempfile
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from raydelta.data.decoding import open_picture
from raydelta.data.shards import (
    FOOTER,
    FORMAT,
    MANIFEST,
    ROWS_PER_GROUP,
    SCHEMA,
    BadItem,
    Description,
    Footer,
    Item,
    Manifest,
    OnProgress,
    Record,
    Shard,
    Skipped,
    Split,
    StoredRow,
    count_pixels,
    digest_of,
    is_plain,
    read_footer,
    read_manifest,
)
from raydelta.errors import UserError
from raydelta.storage.files import BUFFER, absolute, is_remote, open_address, upload, without_secrets
from raydelta.storage.locks import exclusive


class _ShardTask(Record):
    file: str
    inputs: str
    items: list[Item]


class _ShardResult(Record):
    """Errors are values here: Ray would wrap an exception in its own traceback."""

    finished: tuple[Shard, Footer] | None = None
    notes: tuple[str, ...] = ()
    bad: Skipped | None = None
    error: str = ""


def write_dataset(
    target: str | Path,
    splits: Mapping[str, Sequence[Item]],
    encode: Callable[[Item], StoredRow],
    description: Description,
    *,
    rows_per_shard: int = 128,
    skip_bad: bool = False,
    skipped: Sequence[BadItem] = (),
    workers: int | None = None,
    progress: OnProgress = lambda done, total, note: None,
) -> Manifest:
    """Encode the items of every split into shards, one Ray Data task each, and write the manifest.

    On a local disk everything is written to ``TARGET.partial``, which is renamed when it is complete. An object store
    cannot rename: there a data set is complete when it has a manifest, which is written last. The same
    call after an interruption goes on where it stopped; shards of other inputs are written anew. Where two commands
    write to one target, the second waits, and takes the result if its own would be the same. On a cluster of
    several machines the target, and what ``encode`` reads, must lie on storage that all of them share.

    Args:
        target: a folder or an address.
        encode: item → row, run in Ray workers; raises BadItem. Labels hold taxonomy ids and 255 only.
        skip_bad: leave bad items out and list them in the manifest; otherwise the first one stops the write.
        skipped: bad samples that never became items, for the manifest's list.
        workers: at most so many shards at once; as many as the cluster has CPUs if None.

    Raises:
        BadItem: ``encode`` refused an item and ``skip_bad`` is off.
        UserError: the target exists, a split is empty, ids repeat or look like paths, the disk is full.
    """
    folder = absolute(target) if is_remote(target) else f"{absolute(target)}.partial"
    check_target(target)
    for split, items in splits.items():
        _check_items(split, items)
    if not splits:
        raise UserError(f"{target}: nothing to write, no split has any image")
    settings = {"format": FORMAT} | description.model_dump(include={"taxonomy", "source", "options"})
    tasks = [
        _make_task(f"{split}-{start // rows_per_shard:05d}.parquet", items[start : start + rows_per_shard], settings)
        for split, items in splits.items()
        for start in range(0, len(items), rows_per_shard)
    ]
    with exclusive(target):
        written = _written_meanwhile(target, tasks, skip_bad)
        if written is not None:
            return written
        check_target(target)
        return _write(target, folder, tasks, encode, description, list(splits), skip_bad, skipped, workers, progress)


def _write(
    target: str | Path,
    folder: str,
    tasks: Sequence[_ShardTask],
    encode: Callable[[Item], StoredRow],
    description: Description,
    splits: Sequence[str],
    skip_bad: bool,
    skipped: Sequence[BadItem],
    workers: int | None,
    progress: OnProgress,
) -> Manifest:
    """Write all shards, then the manifest; nobody else writes there meanwhile."""
    classes = len(description.taxonomy)
    files, base = open_address(folder)
    with _writing(folder):
        if not is_remote(folder):  # object stores have no folders
            files.create_dir(base, recursive=True)
        _delete_stale(files, base, tasks)
    finished = _run_tasks(tasks, folder, encode, classes, skip_bad, workers, progress)
    manifest = Manifest(
        **dict(description),
        splits={split: _summary(split, finished, classes) for split in splits},
        skipped=[Skipped(file=bad.file, rule=bad.rule) for bad in skipped]
        + [bad for _, footer in finished.values() for bad in footer.skipped],
    )
    with _writing(folder):
        _delete_stale(files, base, tasks)  # what tasks of a write that failed a moment ago have finished since
        changed = [shard.file for shard, _ in finished.values() if not _is_unchanged(files, base, shard)]
        if changed:
            raise UserError(f"{target}: something else writes there too ({changed[0]} has changed); run it again")
        with files.open_output_stream(f"{base}/{MANIFEST}") as stream:
            stream.write(manifest.model_dump_json(indent=1).encode())
        if not is_remote(target):
            Path(folder).rename(absolute(target))
    return manifest


def _written_meanwhile(target: str | Path, tasks: Sequence[_ShardTask], skip_bad: bool) -> Manifest | None:
    """The data set of these very inputs, if another command has finished it while this one waited."""
    files, base = open_address(absolute(target))
    with _writing(target):
        if files.get_file_info(f"{base}/{MANIFEST}").type != pyarrow.fs.FileType.File:
            return None
        same = all(_finished(files, f"{base}/{task.file}", task, skip_bad) for task in tasks)
    return read_manifest(target) if same else None


def _is_unchanged(files: pyarrow.fs.FileSystem, base: str, shard: Shard) -> bool:
    """Whether a shard is what its task has written. An object store would have to send it again: its size has to do."""
    path = f"{base}/{shard.file}"
    if files.get_file_info(path).size != shard.bytes:
        return False
    return not isinstance(files, pyarrow.fs.LocalFileSystem) or digest_of(files, path) == shard.sha256


def _delete_stale(files: pyarrow.fs.FileSystem, base: str, tasks: Sequence[_ShardTask]) -> None:
    """Remove shards that belong to an earlier write of other inputs."""
    for info in files.get_file_info(pyarrow.fs.FileSelector(base, allow_not_found=True)):
        if ".parquet" in info.base_name and info.base_name not in {task.file for task in tasks}:
            files.delete_file(info.path)


def check_target(target: str | Path) -> None:
    """Refuse a target that holds something already, but for shards of an interrupted write in an object store.

    Raises:
        UserError: it does.
    """
    if not is_remote(target):
        if os.path.exists(target):  # noqa: PTH110 - false, and no error, where it cannot be looked at
            raise UserError(f"{target}: exists already; remove it or choose another target")
        return
    files, base = open_address(absolute(target))
    shown = without_secrets(target)
    with _writing(shown):
        present = files.get_file_info(pyarrow.fs.FileSelector(base, allow_not_found=True))
    if MANIFEST in (info.base_name for info in present):
        raise UserError(f"{shown}: exists already; remove it or choose another target")
    foreign = [info.base_name for info in present if not _is_ours(files, info)]
    if foreign:
        raise UserError(f"{shown}: holds other things already ({foreign[0]}); choose a target of its own")


def _is_ours(files: pyarrow.fs.FileSystem, info: pyarrow.fs.FileInfo) -> bool:
    if info.extension != "parquet":
        return False
    try:
        with files.open_input_file(info.path) as file:
            return FOOTER in (pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def encode_jpeg(image: Image.Image) -> bytes:
    """An RGB image as JPEG with next to no loss (quality 95, full colour resolution)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def encode_label(label: NDArray[np.uint8]) -> bytes:
    """A mask of ids, uint8 [H, W], as 8-bit single-channel PNG."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    return buffer.getvalue()


def _check_items(split: str, items: Sequence[Item]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        raise UserError(f"split {split!r}: a name of letters, digits, _ and - is needed")
    if not items:
        raise UserError(f"split {split!r} is empty: no image in it")
    for item in items:
        if not is_plain(item.id):
            raise BadItem(item.image, f"the id {item.id!r} looks like a path that leads elsewhere")
    identifier, count = Counter(item.id for item in items).most_common(1)[0]
    if count > 1:
        raise UserError(f"split {split!r}: the id {identifier!r} occurs {count} times; ids must be unique")


def _make_task(file: str, items: Sequence[Item], settings: Mapping[str, Any]) -> _ShardTask:
    inputs = hashlib.sha256(json.dumps([settings, items], sort_keys=True).encode()).hexdigest()
    return _ShardTask(file=file, inputs=inputs, items=list(items))


def _run_tasks(
    tasks: Sequence[_ShardTask],
    folder: str,
    encode: Callable[[Item], StoredRow],
    classes: int,
    skip_bad: bool,
    workers: int | None,
    progress: OnProgress,
) -> dict[str, tuple[Shard, Footer]]:
    """Write all shards in parallel; their records by file, in the order of the tasks."""
    from raydelta.compute.cluster import ensure_ray

    ensure_ray()  # before Ray is imported, which reads its settings then
    import ray.data  # a second of import that readers of a manifest need not pay

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # says that bars are off, then every step of the plan
    write = partial(_write_shard, folder=folder, encode=encode, classes=classes, skip_bad=skip_bad)
    rows = [{"task": task.model_dump_json()} for task in tasks]
    sizes = {task.file: len(task.items) for task in tasks}
    finished: dict[str, tuple[Shard, Footer]] = {}
    notes: Counter[str] = Counter()
    done = 0
    files, base = open_address(folder)
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(write, concurrency=workers)
    for row in written.iter_rows():
        result = _ShardResult.model_validate_json(row["result"])
        if result.bad is not None:
            raise BadItem(result.bad.file, result.bad.rule)
        if result.finished is None:
            raise UserError(result.error)
        shard = result.finished[0]
        if files.get_file_info(f"{base}/{shard.file}").type != pyarrow.fs.FileType.File:
            raise UserError(f"{folder}: a worker on another machine wrote there; use storage that all machines share")
        finished[shard.file] = result.finished
        notes.update(result.notes)
        done += sizes[shard.file]
        progress(done, sum(sizes.values()), shard.file)
    for note, count in notes.items():
        warnings.warn(f"{note} (in {count} file{'s' * (count > 1)})", stacklevel=2)
    return {task.file: finished[task.file] for task in tasks}


def _write_shard(
    row: dict[str, str], *, folder: str, encode: Callable[[Item], StoredRow], classes: int, skip_bad: bool
) -> dict[str, str]:
    """The Ray Data task: one task in, one shard in the data set, its record out."""
    task = _ShardTask.model_validate_json(row["task"])
    files, base = open_address(folder)
    path = f"{base}/{task.file}"
    notes: list[str] = []
    try:
        with _writing(path), _unfinished(folder, task.file) as unfinished:
            record = _finished(files, path, task, skip_bad)
            if record is None:
                with warnings.catch_warnings(record=True) as caught:  # shown by the command, not in a worker's log
                    warnings.simplefilter("always")
                    _write_rows(unfinished, task, encode, classes, skip_bad)
                notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
                record = _inspect(unfinished.open("rb"), task.file)
                if is_remote(folder):
                    upload(unfinished, files, path)
                else:
                    unfinished.rename(path)
            result = _ShardResult(finished=record, notes=tuple(notes))
    except BadItem as bad:
        result = _ShardResult(bad=Skipped(file=bad.file, rule=bad.rule))
    except UserError as error:
        result = _ShardResult(error=str(error))
    return {"result": result.model_dump_json()}


@contextmanager
def _unfinished(folder: str, file: str) -> Iterator[Path]:
    """Where a shard grows, under a name that nobody else can have taken; gone afterwards."""
    if is_remote(folder):  # it is uploaded when it is whole
        with tempfile.TemporaryDirectory(prefix="raydelta-") as private:
            yield Path(private) / file
        return
    path = Path(folder) / f"{file}.{uuid.uuid4().hex}"  # beside its place, so that a rename suffices
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _finished(files: pyarrow.fs.FileSystem, path: str, task: _ShardTask, skip_bad: bool) -> tuple[Shard, Footer] | None:
    """The records of this very shard, if an interrupted write has left it."""
    if files.get_file_info(path).type != pyarrow.fs.FileType.File:
        return None
    try:
        shard, footer = _inspect(files.open_input_file(path), task.file)
    except (ValueError, pa.ArrowException):  # damaged: it is written anew
        return None
    return (shard, footer) if footer.inputs == task.inputs and (skip_bad or not footer.skipped) else None


def _write_rows(
    path: Path, task: _ShardTask, encode: Callable[[Item], StoredRow], classes: int, skip_bad: bool
) -> None:
    histogram = np.zeros(256, dtype=np.int64)
    unlabelled: list[str] = []
    skipped: list[Skipped] = []
    # Images are compressed already, and statistics of them would only make the footer long.
    columns = {"use_dictionary": ["sequence"], "write_statistics": ["id", "sequence"], "compression": "none"}
    with path.open("xb") as file, pq.ParquetWriter(file, SCHEMA, **columns) as writer:  # x: follows no link
        group: list[StoredRow] = []
        for item in task.items:
            try:
                row = encode(item)
            except BadItem as bad:
                if not skip_bad:
                    raise
                skipped.append(Skipped(file=bad.file, rule=bad.rule))
                continue
            if row["label"] is None:
                unlabelled.append(row["id"])
            else:
                histogram += open_picture(row["label"]).histogram()
            group.append(row)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        pixels, void = count_pixels(histogram, classes)
        assert sum(pixels) + void == histogram.sum(), "the encoder let an id outside the taxonomy pass"
        footer = Footer(inputs=task.inputs, pixels=pixels, void=void, unlabelled=unlabelled, skipped=skipped)
        writer.add_key_value_metadata({FOOTER: footer.model_dump_json()})


def _inspect(opened: Any, name: str) -> tuple[Shard, Footer]:
    """The records of a finished shard, from the open file alone; a local one is on the disk when this returns."""
    with opened as file:
        digest = hashlib.sha256()
        size = 0
        while piece := file.read(BUFFER):
            digest.update(piece)
            size += len(piece)
        if isinstance(file, io.BufferedReader):
            os.fsync(file.fileno())
        file.seek(0)
        metadata = pq.read_metadata(file)
    footer = read_footer(metadata)
    rows = metadata.num_rows
    labelled = rows - len(footer.unlabelled)
    return Shard(file=name, rows=rows, labelled=labelled, bytes=size, sha256=digest.hexdigest()), footer


def _summary(split: str, finished: Mapping[str, tuple[Shard, Footer]], classes: int) -> Split:
    mine = [record for file, record in finished.items() if file.rpartition("-")[0] == split]
    if not any(shard.rows for shard, _ in mine):
        raise UserError(f"split {split!r} is empty: every image of it was skipped")
    return Split(
        shards=[shard for shard, _ in mine],
        pixels=[sum(footer.pixels[index] for _, footer in mine) for index in range(classes)],
        void=sum(footer.void for _, footer in mine),
    )


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(
            f"{path}: cannot be written: {reason}; what is finished is kept, the same command goes on from there"
        ) from error
