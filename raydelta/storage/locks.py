"""Locks of directories and data sets: a file on a disk, tickets in an object store. A dead owner's lock is free."""

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pyarrow.fs

from raydelta.errors import UserError
from raydelta.storage.files import address_of, explain, is_remote, open_address, without_secrets

LEASE = 30.0
"""Seconds without a sign of life after which a lock in an object store is taken from its owner."""


class Lock(Protocol):
    """What ``open_lock`` returns."""

    @property
    def held(self) -> bool: ...
    def acquire(self, wait: bool = True) -> None: ...
    def release(self) -> None: ...


def open_lock(target: str | Path) -> Lock:
    """The lock of a directory or data set, which need not exist yet; ``exclusive`` is the usual way to it."""
    address = address_of(Path(target)) if not is_remote(target) else str(target)
    return FileLock(Path(target)) if address is None else ObjectLock(address)


@contextlib.contextmanager
def exclusive(target: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a directory or data set, which need not exist yet; wait, and warn, while another process does.

    Whoever waited finds what the other has finished, and has to look for it. The lock of a dead owner is free: on a
    disk and on NFS the kernel and the server see to that; in an object store it is free after ``LEASE`` seconds.

    Args:
        wait: False raises BlockingIOError instead.

    Raises:
        UserError: the folder around the target cannot be written.
    """
    lock = open_lock(target)
    lock.acquire(wait)
    try:
        yield
    finally:
        lock.release()


def is_locked(target: Path) -> bool:
    """Whether someone holds the lock of a directory."""
    if (address := address_of(target)) is not None:
        return ObjectLock(address).is_taken()
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
    """``flock`` on a hidden file beside a directory, removed with the lock."""

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


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError as error:
        with contextlib.suppress(FileNotFoundError):  # a colleague's, which can be waited for without writing to it
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        raise error


class ObjectLock:
    """Tickets as in Lamport's bakery (CACM 1974): all it asks of a store is that what was written is listed at once.

    ``choosing-ID`` stands for a process that is about to take a ticket, ``NUMBER-ID`` for its ticket; the lowest has
    the lock. Both are written again as long as the process lives. No clock of one machine is compared with another's.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        if urlsplit(address).scheme in ("http", "https"):
            raise UserError(f"{without_secrets(address)}: a web server can only be read from")
        self._files, base = open_address(address)
        self._folder = f"{base.rpartition('/')[0]}/.{base.rpartition('/')[2]}.lock"
        self._own, self._held = "", list[str]()
        self._ended = threading.Event()

    @property
    def held(self) -> bool:
        return bool(self._held)

    def acquire(self, wait: bool = True) -> None:
        """As ``exclusive``: BlockingIOError if another process holds it, and this is not to wait."""
        if self._held:
            return
        self._own, self._ended = secrets.token_hex(8), threading.Event()
        self._held = [f"choosing-{self._own}"]
        try:
            self._put(self._held[0])
            threading.Thread(target=self._beat, args=(self._ended,), daemon=True).start()
            taken = [int(name.partition("-")[0]) for name in self._present() if name[0].isdigit()]
            self._held.append(f"{1 + max(taken, default=0):012d}-{self._own}")
            self._put(self._held[1])
            self._remove(self._held.pop(0))
            self._wait_for_turn(wait)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
                raise explain(self._address, error) from error
            raise

    def release(self) -> None:
        """Give it back; nothing if it is not held."""
        self._ended.set()
        while self._held:
            self._remove(self._held.pop())

    def is_taken(self) -> bool:
        """Whether anyone who has given a sign of life lately holds it or waits for it. The store's clock says when."""
        try:
            tickets = self._present()
            if not tickets:
                return False
            self._put(probe := f"probe-{secrets.token_hex(8)}")
            now = self._present().get(probe)
            self._remove(probe)
            return any(now is None or at is None or now - at < LEASE * 1e9 for at in tickets.values())
        except OSError as error:
            raise explain(self._address, error) from error

    def _wait_for_turn(self, wait: bool) -> None:
        seen: dict[str, tuple[int | None, float]] = {}  # name → when it was last written, and since when we know that
        while ahead := {name: at for name, at in self._present().items() if self._is_ahead(name)}:
            if not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", self._address)
            if not seen:
                _tell_waiting(self._address)
            now = time.monotonic()  # clocks of machines differ, so only this one counts
            for name, at in ahead.items():
                if name not in seen or seen[name][0] != at:
                    seen[name] = (at, now)
                elif now - seen[name][1] > LEASE:
                    self._remove(name)
            time.sleep(0.5)

    def _is_ahead(self, name: str) -> bool:
        return self._own not in name and (name.startswith("choosing") or (name[0].isdigit() and name < self._held[0]))

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(LEASE / 6):
            with contextlib.suppress(OSError):  # the storage may be away
                alive = self._present()
                for name in list(self._held):
                    if name in alive:
                        self._put(name)

    def _put(self, name: str) -> None:
        with self._files.open_output_stream(f"{self._folder}/{name}") as stream:
            stream.write(self._own.encode() or b"probe")

    def _present(self) -> dict[str, int | None]:
        found = self._files.get_file_info(pyarrow.fs.FileSelector(self._folder, allow_not_found=True))
        return {info.base_name: info.mtime_ns for info in found if info.is_file}

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._files.delete_file(f"{self._folder}/{name}")
