"""Runs in a bucket: every machine works on a local copy, which is fetched from the bucket and published to it.

    ~/.cache/raydelta/s3%3A%2F%2Fbucket%2Fruns/…      the copy of s3://bucket/runs/…

The place of a path says whose copy it is, so it means the same in every process and on every machine. Files are
written once and whole, and what says that the others are whole (``MANIFESTS``) comes last. For paths that belong to no
bucket the functions here do nothing, but for ``remove``.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, quote, urlsplit

import pyarrow.fs

from raydelta.errors import UserError
from raydelta.storage.files import (
    BUFFER,
    absolute,
    address_of,
    explain,
    is_remote,
    is_same,
    locate,
    open_address,
    put,
    stamp,
    without_secrets,
)

LIGHT = 2**20
"""Bytes up to which a file is fetched before anybody asks for it: manifests, tables, curves, and not weights."""

MANIFESTS = ("meta.json", "stage.json")
THREADS = 8


def open_runs(runs: str | Path, write: bool = False) -> Path:
    """The directory to work in: ``runs`` itself, or the local copy of a bucket, with what is light of every run in it.

    Args:
        write: whether it will be written to; that is tried.

    Raises:
        UserError: no such bucket, no right to it, or it cannot be reached.
    """
    if not is_remote(runs):
        return Path(runs).expanduser()
    copy = open_copy(runs)
    with _explained(copy):
        files, base = _located(copy)
        if write:
            probe = f"{base}/.probe-{secrets.token_hex(4)}"
            with files.open_output_stream(probe) as stream:
                stream.write(b"raydelta")
            files.delete_file(probe)
    fetch(copy, light=True, deep=False)
    if not any(copy.iterdir()):
        with _explained(copy):
            bucket = base.partition("/")[0]
            if files.get_file_info(bucket).type == pyarrow.fs.FileType.NotFound:
                raise OSError("NO_SUCH_BUCKET")
    return copy


def open_copy(address: str | Path) -> Path:
    """The local copy of a folder in a bucket, as it is.

    Raises:
        UserError: no address of a store that can be written to, or one with a password in it.
    """
    address = absolute(address)
    parts = urlsplit(address)
    options = {key for key, _ in parse_qsl(parts.query)}
    if ":" in parts.netloc.rpartition("@")[0] or options & {"access_key", "secret_key"}:
        raise UserError(
            f"{without_secrets(address)}: runs are named in files and on the screen, so no password in their address; "
            "set it in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if parts.scheme in ("http", "https", "file"):
        raise UserError(f"{without_secrets(address)}: runs lie in a folder or in a bucket (s3://, gs://, abfs://)")
    open_address(address)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raydelta"
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / quote(address, safe="")
    copy.mkdir(mode=0o700, exist_ok=True)
    return copy


def open_run(address: str) -> Path:
    """The local copy of one run in a bucket, with what is light in it. It need not exist."""
    parent, _, name = address.rstrip("/").rpartition("/")
    above, _, folder = parent.rpartition("/")
    copy = open_copy(above) / folder / name if folder == "unfinished" else open_copy(parent) / name
    fetch(copy, light=True)
    return copy


def as_local(run: str | Path) -> Path:
    """A run's directory, or the local copy of one in a bucket, with what is light in it."""
    path = open_run(str(run)) if is_remote(run) else Path(run).expanduser()
    fetch(path, light=True, age=60)
    return path


_fetched: dict[tuple[Path, bool], float] = {}


def fetch(path: Path, light: bool = False, deep: bool = True, over: bool = False, age: float = 0.0) -> None:
    """Make a file or folder of a local copy what it is in the bucket.

    What was changed here and not published stays, unless ``over``.

    Args:
        light: leave out files of more than ``LIGHT`` bytes; what was fetched before and has changed since goes.
        deep: False leaves out what lies deeper than the files of a run and of its checkpoint.
        age: seconds for which an earlier answer holds.

    Raises:
        UserError: the bucket cannot be read.
    """
    if locate(path) is None or (age and time.monotonic() - _fetched.get((path, light), -age) < age):
        return
    with _explained(path), ThreadPoolExecutor(THREADS) as pool:
        files, base = _located(path)
        there = _list(files, base)
        if not deep:
            there = {name: info for name, info in there.items() if _is_shallow(name)}
        for name, local in _present(path).items():
            info = there.get(name)
            if info is not None and is_same(local, info):
                del there[name]
            elif not over and not is_same(local):
                there.pop(name, None)  # changed here
            elif info is None and (deep or _is_shallow(name)) and is_same(local):
                local.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it is not empty
                    local.parent.rmdir()
        for last in (False, True):
            wanted = [name for name in there if (PurePosixPath(name).name in MANIFESTS) is last]
            list(pool.map(lambda name: _get(files, there[name], path / name if name else path, light), wanted))
    _fetched[path, light] = time.monotonic()


def publish(path: Path, whole: bool = False) -> None:
    """Bring what was changed in a file or folder of a local copy into the bucket.

    Args:
        whole: the folder there becomes what it is here; else what is not here stays.

    Raises:
        UserError: the bucket cannot be written; the local copy stays as it is.
    """
    if locate(path) is None:
        return
    with _explained(path), ThreadPoolExecutor(THREADS) as pool:
        files, base = _located(path)
        there, here = _list(files, base), _present(path)
        changed = [name for name, local in here.items() if not is_same(local, there.get(name))]
        if whole and changed:
            for name in there:
                if name not in here or PurePosixPath(name).name in MANIFESTS:
                    files.delete_file(f"{base}/{name}")
        for last in (False, True):
            names = [name for name in changed if (PurePosixPath(name).name in MANIFESTS) is last]
            list(pool.map(lambda name: put(here[name], files, f"{base}/{name}" if name else base), names))


def publish_copy(path: Path) -> None:
    """Bring a file that goes on growing into the bucket as it is now; here it stays marked as changed.

    Raises:
        UserError: the bucket cannot be written.
    """
    if locate(path) is None or not path.exists():
        return
    with _explained(path):
        content, (files, name) = path.read_bytes(), _located(path)
        with files.open_output_stream(name) as stream:
            stream.write(content)


def names_in(path: Path) -> list[str]:
    """The names in a folder, in the bucket if it is a local copy."""
    if locate(path) is None:
        return sorted(each.name for each in path.glob("[!.]*"))
    with _explained(path):
        files, base = _located(path)
        found = files.get_file_info(pyarrow.fs.FileSelector(base, allow_not_found=True))
        return sorted({info.base_name for info in found if _is_ours(info.base_name)})


def size_of(path: Path) -> int:
    """Bytes of a file or folder, in the bucket if it is a local copy."""
    if locate(path) is None:
        return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    with _explained(path):
        return sum(info.size for info in _list(*_located(path)).values())


def remove(path: Path) -> None:
    """Remove a file or folder if it is there; of a local copy, in the bucket too, the manifests first."""
    if locate(path) is not None:
        with _explained(path):
            files, base = _located(path)
            there = _list(files, base)
            for name in there:
                if not name or PurePosixPath(name).name in MANIFESTS:
                    files.delete_file(f"{base}/{name}" if name else base)
            if "" not in there:
                with contextlib.suppress(FileNotFoundError):
                    files.delete_dir(base)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _list(files: pyarrow.fs.FileSystem, base: str) -> dict[str, pyarrow.fs.FileInfo]:
    """Name below ``base`` → its file; the name of a file itself is empty."""
    info = files.get_file_info(base)
    if info.is_file:
        return {"": info}
    found = files.get_file_info(pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True))
    named = {info.path.removeprefix(base).lstrip("/"): info for info in found if info.is_file}
    return {name: info for name, info in named.items() if _is_ours(name)}


def _is_ours(name: str) -> bool:
    """Whether it is content: no lock, nothing half written, and nothing that leads elsewhere."""
    return not any(part.startswith(".") for part in PurePosixPath(name).parts)


def _is_shallow(name: str) -> bool:
    """Whether a name in an output directory is a file of a run, or of its checkpoint."""
    return re.fullmatch(r"(unfinished/)?[^/]+/((checkpoint(-\d+)?|best)/)?[^/]+", name) is not None


def _present(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    named = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return {name: file for name, file in named.items() if _is_ours(name)}


def _get(files: pyarrow.fs.FileSystem, info: pyarrow.fs.FileInfo, target: Path, light: bool) -> None:
    if light and info.size > LIGHT:
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with files.open_input_stream(info.path) as remote, beside.open("wb") as local:
            shutil.copyfileobj(remote, local, BUFFER)
        stamp(beside, info)
        beside.replace(target)
    except FileNotFoundError:  # removed meanwhile
        pass
    finally:
        beside.unlink(missing_ok=True)


def _located(path: Path) -> tuple[pyarrow.fs.FileSystem, str]:
    located = locate(path)
    assert located is not None
    return located


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if getattr(error, "filename", None):  # of this machine
            raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
        raise explain(address_of(path) or str(path), error) from error
