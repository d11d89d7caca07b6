"""Local paths and storage addresses (``s3://…``): read, joined, opened, and written whole or not at all."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs

from raydelta.errors import UserError

BUFFER = 8 * 2**20  # bytes


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
    parts = urlsplit(str(uri))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def open_address(uri: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of an address, and the path in it.

    Raises:
        UserError: no file system for such an address.
    """
    return _open_remote(str(uri)) if is_remote(uri) else (pyarrow.fs.LocalFileSystem(), absolute(uri))


def open_file_address(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """As ``open_address``, for a file: its name is taken as it is, and one client serves its whole folder."""
    if not is_remote(address):
        return open_address(address)
    base, question, options = address.partition("?")
    folder, _, name = base.rpartition("/")
    files, path = open_address(f"{folder}{question}{options}")
    return files, f"{path}/{name}"


@functools.lru_cache(maxsize=256)  # a client per file would cost more than the file
def _open_remote(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    try:
        try:
            files, base = pyarrow.fs.FileSystem.from_uri(address)
        except pa.ArrowInvalid:  # not one of pyarrow's own
            files, base = pyarrow.fs.FileSystem.from_uri(f"fsspec+{address}")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{without_secrets(address)}: no way to read such an address: {error}") from error
    return files, base.rstrip("/")


def read_bytes(address: str) -> bytes:
    """The content of a file."""
    if not is_remote(address):
        return Path(address).read_bytes()
    files, path = open_file_address(address)
    with files.open_input_stream(path) as stream:
        return stream.read()


def upload(source: Path, files: pyarrow.fs.FileSystem, path: str) -> None:
    """Copy a local file to storage; an object store shows it when it is whole."""
    with source.open("rb") as local, files.open_output_stream(path) as remote:
        shutil.copyfileobj(local, remote, BUFFER)


PATIENCE = 180.0
"""Seconds that storage may be away before a training gives up."""


def fingerprint(inputs: Any) -> str:
    """Ten hex digits that stand for anything that is JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:10]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def replace_directory(source: Path, target: Path) -> None:
    """Copy a directory to ``target``, whole or not at all; an older one there goes."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(source, beside)
        if target.exists():
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            beside.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            beside.rename(target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"{target}: cannot be written: {error}") from error


def patiently(folder: Path, write: Callable[[], None] = lambda: None) -> None:
    """Write something below a folder; while that folder is away (a mount, a server), wait for it and write again.

    Raises:
        UserError: it was away for longer than ``PATIENCE``.
    """
    deadline = time.monotonic() + PATIENCE
    failed = warned = False
    while True:
        if folder.is_dir() and os.access(folder, os.W_OK):  # else it would be made anew where a mount was
            try:
                return write()
            except (OSError, UserError):
                if failed:  # twice, and the folder is there: the fault is another
                    raise
                failed = True
        else:
            failed = False
            if time.monotonic() > deadline:
                raise UserError(f"{folder}: away for {PATIENCE:g} s; run the same command again when it is back")
            if not warned:
                warnings.warn(f"{folder}: away; waiting for it", stacklevel=2)
                warned = True
        time.sleep(1)
