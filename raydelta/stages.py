"""Stages: directories that are built once for the same inputs, and count only when their manifest is written.

What is built, and how, lives with each stage; here is only when one is complete and how it becomes so, whatever dies
meanwhile and even if the storage is away for a moment.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydelta.errors import UserError

MANIFEST = "stage.json"
PATIENCE = 180.0
"""Seconds that storage may be away before a training gives up."""


def fingerprint(inputs: Any) -> str:
    """Ten hex digits that stand for anything that is JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:10]


def read_stage(directory: Path) -> dict[str, Any] | None:
    """The manifest of a complete stage, or None.

    Raises:
        UserError: the manifest is there but cannot be read.
    """
    path = directory / MANIFEST
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged stage, remove the directory to build it again: {error}") from error


def complete_stage(directory: Path, manifest: dict[str, Any]) -> None:
    """Declare a stage complete: its manifest is written last, and at once."""
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, default=str))


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
