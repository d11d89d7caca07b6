"""Local paths and storage addresses (``s3://…``): read, joined, opened, and written whole or not at all."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs

from raydelta.errors import UserError

BUFFER = 8 * 2**20  # bytes
MOST_WEIGHTS = 2**40  # bytes of a file of weights

SCHEMES: dict[str, frozenset[str] | None] = {
    "file": frozenset(),
    "s3": frozenset({"region", "access_key", "secret_key"}),
    "gs": frozenset({"project_id"}),
    "gcs": frozenset({"project_id"}),
    "abfs": frozenset(),
    "abfss": frozenset(),
    "hdfs": frozenset({"user"}),
    "viewfs": frozenset({"user"}),
    "http": None,
    "https": None,
}
"""Scheme of an address that is opened → its ``?options``; None: any, as they are part of what a web server is asked.

A stranger's file may name addresses. fsspec has more schemes, which follow references to other servers or run
templates, and an option may name the server that the credentials of this machine are sent to.
"""
TIMEOUTS = {"connect_timeout": 4.0, "request_timeout": 8.0}
"""Seconds for a connection, and without a byte, before S3 is asked again; three times make less than 30 s."""
AZURE = (".core.windows.net", ".core.chinacloudapi.cn", ".core.usgovcloudapi.net", ".fabric.microsoft.com")


def is_remote(uri: str | Path) -> bool:
    """Whether an address is more than a path on this machine."""
    return "://" in str(uri)


def absolute(uri: str | Path) -> str:
    """The address as it means the same in every process: local paths made absolute."""
    # Relative to the driver's folder, a local path would mean another one in a worker.
    return str(uri).rstrip("/") if is_remote(uri) else str(Path(uri).expanduser().absolute())


def join(uri: str | Path, name: str) -> str:
    """The address of something below an address; ``?options`` of a remote one stay at the end."""
    if not is_remote(uri):
        return str(Path(uri) / name)
    base, question, options = str(uri).partition("?")
    return f"{base.rstrip('/')}/{name}{question}{options}"


def without_secrets(uri: str | Path) -> str:
    """The address without a user name, password or options, to be written down."""
    if not is_remote(uri):
        return str(uri)
    if "::" in str(uri):
        return "::".join(without_secrets(part) for part in str(uri).split("::"))
    parts = urlsplit(str(uri))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def address_of(path: Path) -> str | None:
    """What a path in the local copy of a bucket (``bucket.open_runs``) stands for; None for any other path."""
    for number, part in enumerate(path.parts):
        if "%3A%2F%2F" in part:  # "://", which no other folder has in its name
            return (
                join(unquote(part), "/".join(path.parts[number + 1 :])) if path.parts[number + 1 :] else unquote(part)
            )
    return None


def shown(path: Path) -> str:
    """A path as the user knows it: in the local copy of a bucket its address."""
    return address_of(path) or str(path)


def locate(path: Path) -> tuple[pyarrow.fs.FileSystem, str] | None:
    """The file system of a bucket, and the path in it, that a path in its local copy stands for; None for others."""
    for number, part in enumerate(path.parts):
        if "%3A%2F%2F" in part:
            files, base = open_address(unquote(part))
            return files, "/".join([base, *path.parts[number + 1 :]])
    return None


def put(source: Path, files: pyarrow.fs.FileSystem, path: str) -> None:
    """Upload a file of a local copy; from then on it is known to be what is in the bucket."""
    upload(source, files, path)
    stamp(source, files.get_file_info(path))


STAMP = 314_159_265
"""Nanoseconds in the time of a local file that is what is in the bucket: any later change of it has others."""


def stamp(local: Path, info: pyarrow.fs.FileInfo) -> None:
    """Give a local file the store's time, and the mark of one that is as it is there."""
    time_ns = (info.mtime_ns or 0) // 10**9 * 10**9 + STAMP
    os.utime(local, ns=(time_ns, time_ns))


def is_same(local: Path, info: pyarrow.fs.FileInfo | None = None) -> bool:
    """Whether a local file is what was in the bucket when it was last looked at; with ``info``, whether it still is."""
    try:
        found = local.stat()
    except FileNotFoundError:
        return False
    if found.st_mtime_ns % 10**9 != STAMP:
        return False
    return info is None or (found.st_size == info.size and found.st_mtime_ns // 10**9 == (info.mtime_ns or 0) // 10**9)


class Away(UserError):  # noqa: N818 - it may come back
    """Storage that cannot be reached now."""


NO_RIGHT = (
    r"ACCESS_DENIED|[Aa]ccess ?[Dd]enied|FORBIDDEN|Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|AuthenticationFailed|"
    r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|TOKEN|\b40[13]\b"
)
NO_BUCKET = (
    "NO_SUCH_BUCKET|RESOURCE_NOT_FOUND during (Create|List|Put)|[Tt]he specified (bucket|container) does not exist"
)
"""What stores say: Arrow hands on their words."""


def explain(address: str, error: OSError) -> UserError:
    """What went wrong with a store, and what to do."""
    text, where = str(error), without_secrets(address)
    bucket = "://".join((urlsplit(where).scheme, urlsplit(where).netloc))
    if re.search(NO_RIGHT, text):
        return UserError(
            f"{where}: no right to it; the credentials of this machine (AWS_ACCESS_KEY_ID and so on, or the machine's "
            f"role) have to list, read, write and delete in {bucket}: {_brief(text)}"
        )
    if re.search(NO_BUCKET, text):
        return UserError(f"{where}: there is no bucket {bucket}; make it, or check its name and AWS_REGION")
    return Away(
        f"{where}: {bucket} cannot be reached, or does not take it; check the network and AWS_ENDPOINT_URL, and run "
        f"the same command again when it answers: {_brief(text)}"
    )


def _brief(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def open_address(uri: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of an address, and the path in it.

    Raises:
        UserError: no file system for such an address.
    """
    return _open_remote(str(uri)) if is_remote(uri) else (pyarrow.fs.LocalFileSystem(), absolute(uri))


def open_file_address(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """As ``open_address``, for a file: its name is taken as it is, and one client serves its whole folder.

    Raises:
        UserError: as ``open_address``, or a pipe or device, which may never end.
    """
    if not is_remote(address):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(mode := Path(address).stat().st_mode) and not stat.S_ISDIR(mode):
                raise UserError(f"{address}: a pipe or device, not a file")
        return open_address(address)
    base, question, options = address.partition("?")
    folder, _, name = base.rpartition("/")
    files, path = open_address(f"{folder}{question}{options}")
    return files, f"{path}/{name}"


def check_address(address: str) -> None:
    """Refuse an address that leads elsewhere than it seems.

    Raises:
        UserError: no address at all, a scheme or option that is not in ``SCHEMES``, a chain (``::``), or a server for
            Azure's credentials.
    """
    try:
        parts, shown = urlsplit(address), without_secrets(address)
    except ValueError as error:
        raise UserError(f"{address.rpartition('@')[2]}: not an address: {error}") from error
    if "::" in address or parts.scheme not in SCHEMES:
        raise UserError(f"{shown}: no way to read such an address; known are {', '.join(SCHEMES)} and local paths")
    known = SCHEMES[parts.scheme]
    unknown = (
        sorted({key for key, _ in parse_qsl(parts.query, keep_blank_values=True)} - known) if known is not None else []
    )
    if unknown:
        raise UserError(
            f"{shown}: the option {unknown[0]} is not taken from an address; set it in the environment "
            "(AWS_ENDPOINT_URL for a server of your own)"
        )
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme in ("abfs", "abfss") and "." in host and not host.endswith(AZURE):
        raise UserError(f"{shown}: {host} is no server of Azure ({', '.join(AZURE)})")
    try:
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{shown}: not an address: {error}") from error


@functools.lru_cache(maxsize=256)  # a client per file would cost more than the file
def _open_remote(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    check_address(address)
    try:
        try:
            files, base = pyarrow.fs.FileSystem.from_uri(address)
        except pa.ArrowInvalid:  # not one of pyarrow's own
            files, base = pyarrow.fs.FileSystem.from_uri(f"fsspec+{address}")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{without_secrets(address)}: no way to read such an address: {error}") from error
    if isinstance(files, pyarrow.fs.S3FileSystem):  # by itself it waits minutes for a server that says nothing
        build, (options,) = files.__reduce__()
        files = build({**options, **TIMEOUTS})
    return files, base.rstrip("/")


def read_bytes(address: str, limit: int = 2**30) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        UserError: a pipe or device, which may never end, or more than ``limit`` bytes or the memory.
    """
    if is_remote(address):
        files, path = open_file_address(address)
        with files.open_input_stream(path) as stream:
            content = stream.read(limit + 1)
    else:
        # Opening a pipe would wait for whoever writes to it.
        with open(os.open(address, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - a descriptor
            if stat.S_ISDIR(mode := os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), address)
            if not stat.S_ISREG(mode):
                raise UserError(f"{address}: a pipe or device, not a file")
            # Not read(limit), which would ask for so much memory at once.
            try:
                content = file.read() if os.fstat(file.fileno()).st_size <= limit else None
            except MemoryError as error:
                raise UserError(f"{address}: larger than the memory of this machine") from error
    if content is None or len(content) > limit:
        raise UserError(
            f"{without_secrets(address)}: larger than {limit / 2**20:.0f} MiB, which is the most that is read"
        )
    return content


def read_text(path: Path) -> str:
    """The text of a file in a run's directory, to be shown. A symbolic link is not followed: it may lead anywhere.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.is_symlink():
            raise UserError(f"{path}: a symbolic link; not followed")
        return read_bytes(str(path), 64 * 2**20).decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def upload(source: Path, files: pyarrow.fs.FileSystem, path: str) -> None:
    """Copy a local file to storage; an object store shows it when it is whole."""
    with source.open("rb") as local, files.open_output_stream(path) as remote:
        shutil.copyfileobj(local, remote, BUFFER)


AWAY = 180.0
"""Seconds that storage may be away before a training gives up."""


def fingerprint(inputs: Any) -> str:
    """Ten hex digits that stand for anything that is JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:10]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; one in the local copy of a bucket, in the bucket first."""
    beside, remote = _beside(path), locate(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        if remote is not None:
            try:
                put(beside, *remote)
            except OSError as error:
                raise explain(shown(path), error) from error
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def replace_directory(source: Path, target: Path) -> None:
    """Copy a directory to ``target``, whole or not at all; an older one there goes. Hold ``exclusive`` around it.

    Raises:
        UserError: it cannot be written; what was there stays.
    """
    fill_directory(target, lambda beside: shutil.copytree(source, beside))


def fill_directory(target: Path, fill: Callable[[Path], object]) -> None:
    """As ``replace_directory``, with what ``fill`` makes under the new name that it is given."""
    beside, old = _beside(target), _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*"):  # by a process that was killed in here
            shutil.rmtree(left, ignore_errors=True)
        fill(beside)
        if target.exists():
            target.rename(old)
        beside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise UserError(f"{target}: cannot be written: {error}") from error


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder. Random, as process numbers repeat on other machines; not longer than a
    file's name may be, however long the given one is."""
    return path.with_name(f".{path.name.encode()[:200].decode(errors='ignore')}.{secrets.token_hex(4)}")


def patiently(folder: Path, write: Callable[[], None] = lambda: None) -> None:
    """Write something below a folder; while that is away (a mount, a server, a bucket), wait and write again.

    Raises:
        UserError: it was away for longer than ``AWAY``.
    """
    deadline = time.monotonic() + AWAY
    failed = warned = False
    remote = address_of(folder)
    while True:
        away: UserError = Away(f"{folder}: away")
        if remote is not None:
            folder.mkdir(parents=True, exist_ok=True)  # the first training of this machine
        if folder.is_dir() and os.access(folder, os.W_OK):  # else it would be made anew where a mount was
            try:
                return write()
            except Away as error:
                away = error
            except (OSError, UserError):
                if failed:  # twice, and the folder is there: the fault is another
                    raise
                failed = True
                time.sleep(1)
                continue
        failed = False
        if time.monotonic() > deadline:
            kept = f"; what could not be brought there is kept in {folder}" if remote is not None else ""
            raise UserError(
                f"{shown(folder)}: away for {AWAY:g} s; run the same command again when it is back{kept}"
            ) from away
        if not warned:
            warnings.warn(f"{shown(folder)}: away; waiting for it", stacklevel=2)
            warned = True
        time.sleep(1)
