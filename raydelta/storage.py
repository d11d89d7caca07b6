"""Local paths and storage addresses (``s3://…``): read, joined, opened, locked, and written whole or not at all."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs

from raydelta.errors import UserError

BUFFER = 8 * 2**20  # bytes

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


def check_address(address: str) -> None:
    """Refuse an address that leads elsewhere than it seems.

    Raises:
        UserError: a scheme or option that is not in ``SCHEMES``, a chain (``::``), or a server for Azure's credentials.
    """
    parts, shown = urlsplit(address), without_secrets(address)
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
    return files, base.rstrip("/")


def read_bytes(address: str, limit: int = 2**30) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        UserError: a pipe or device, which may never end, or more than ``limit`` bytes.
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
            content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(
            f"{without_secrets(address)}: larger than {limit / 2**20:.0f} MiB, which is the most that is read"
        )
    return content


def upload(source: Path, files: pyarrow.fs.FileSystem, path: str) -> None:
    """Copy a local file to storage; an object store shows it when it is whole."""
    with source.open("rb") as local, files.open_output_stream(path) as remote:
        shutil.copyfileobj(local, remote, BUFFER)


AWAY = 180.0
"""Seconds that storage may be away before a training gives up."""

LEASE = 30.0
"""Seconds without a sign of life after which a lock in an object store is taken from its owner."""


def fingerprint(inputs: Any) -> str:
    """Ten hex digits that stand for anything that is JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:10]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    beside = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


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


@contextlib.contextmanager
def exclusive(target: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a directory or data set, which need not exist yet; wait, and warn, while another process does.

    Whoever waited finds what the other has finished, and has to look for it. The lock of a dead owner is free: on a
    disk and on NFS the kernel and the server see to that; in an object store it is free after ``LEASE`` seconds.

    Args:
        wait: False raises BlockingIOError instead; for a local directory only.

    Raises:
        UserError: the folder around the target cannot be written.
    """
    with _locked_object(str(target)) if is_remote(target) else _locked_file(Path(target), wait):
        yield


def is_locked(target: Path) -> bool:
    """Whether someone holds the lock of a local directory."""
    try:
        descriptor = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _tell_waiting(target: str | Path) -> None:
    name = without_secrets(target).rpartition("/")[2]
    warnings.warn(f"{name}: another command is making it; waiting for its result", stacklevel=5)


class FileLock:
    """``flock`` on a hidden file beside a directory, removed with the lock. ``exclusive`` is the usual way to it."""

    def __init__(self, target: Path) -> None:
        self.target, self.path = target, target.with_name(f".{target.name}.lock")
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self, wait: bool = True) -> None:
        """As ``exclusive``: BlockingIOError if another process holds it, and this is not to wait."""
        told = False
        while self._descriptor is None:
            try:
                self._descriptor = self._try()
            except BlockingIOError:
                if not wait:
                    raise
                if not told:
                    _tell_waiting(self.target)
                    told = True
                time.sleep(0.5)
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _try(self) -> int | None:
        """The descriptor that holds the lock; None: its last owner removed the file meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(self.path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                reason = f"{self.path.parent}: knows no locks ({error.strerror}); run one command at a time"
                warnings.warn(reason, stacklevel=5)
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self) -> None:
        """Give it back; nothing if it is not held."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # the storage may be away
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def _locked_file(target: Path, wait: bool) -> Iterator[None]:
    lock = FileLock(target)
    lock.acquire(wait)
    try:
        yield
    finally:
        lock.release()


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError as error:
        with contextlib.suppress(FileNotFoundError):  # a colleague's, which can be waited for without writing to it
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        raise error


@contextlib.contextmanager
def _locked_object(address: str) -> Iterator[None]:
    """Tickets as in Lamport's bakery (CACM 1974): all it asks of a store is that what was written is listed at once.

    ``choosing-ID`` stands for a process that is about to take a ticket, ``NUMBER-ID`` for its ticket; the lowest has
    the lock. Both are written again as long as the process lives.
    """
    if urlsplit(address).scheme in ("http", "https"):
        raise UserError(f"{without_secrets(address)}: a web server can only be read from")
    files, base = open_address(address)
    folder, own = f"{base.rpartition('/')[0]}/.{base.rpartition('/')[2]}.lock", secrets.token_hex(8)

    def put(name: str) -> None:
        with files.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(own.encode())

    def present() -> dict[str, int | None]:
        found = files.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
        return {info.base_name: info.mtime_ns for info in found if info.is_file}

    def is_ahead(name: str) -> bool:
        return name.startswith("choosing") or name < held[0]

    def remove(name: str) -> None:
        with contextlib.suppress(OSError):
            files.delete_file(f"{folder}/{name}")

    held, ended = [f"choosing-{own}"], threading.Event()

    def beat() -> None:
        while not ended.wait(LEASE / 6):
            with contextlib.suppress(OSError):  # the storage may be away
                alive = present()
                for name in held:
                    if name in alive:
                        put(name)

    try:
        put(held[0])
        threading.Thread(target=beat, daemon=True).start()
        number = 1 + max((int(name.partition("-")[0]) for name in present() if name[0].isdigit()), default=0)
        held.append(f"{number:012d}-{own}")
        put(held[1])
        remove(held.pop(0))
        seen: dict[str, tuple[int | None, float]] = {}  # name → when it was last written, and since when we know that
        while ahead := {name: at for name, at in present().items() if own not in name and is_ahead(name)}:
            if not seen:
                _tell_waiting(address)
            now = time.monotonic()  # clocks of machines differ, so only this one counts
            for name, at in ahead.items():
                if name not in seen or seen[name][0] != at:
                    seen[name] = (at, now)
                elif now - seen[name][1] > LEASE:
                    remove(name)
            time.sleep(0.5)
    except OSError as error:
        ended.set()
        for name in held:
            remove(name)
        raise UserError(f"{without_secrets(address)}: cannot be written: {error}") from error
    try:
        yield
    finally:
        ended.set()
        remove(held[0])


def patiently(folder: Path, write: Callable[[], None] = lambda: None) -> None:
    """Write something below a folder; while that folder is away (a mount, a server), wait for it and write again.

    Raises:
        UserError: it was away for longer than ``AWAY``.
    """
    deadline = time.monotonic() + AWAY
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
                raise UserError(f"{folder}: away for {AWAY:g} s; run the same command again when it is back")
            if not warned:
                warnings.warn(f"{folder}: away; waiting for it", stacklevel=2)
                warned = True
        time.sleep(1)
