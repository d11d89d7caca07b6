"""Addresses: a local path, or anything that pyarrow or fsspec can open (``s3://bucket/set``, ``gs://``, NFS).

S3-compatible servers: set ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` on every node.
"""

import functools
import shutil
from pathlib import Path
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
