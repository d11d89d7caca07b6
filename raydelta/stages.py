"""Stages: directories that are built once for the same inputs, and count only when their manifest is written.

What is built, and how, lives with each stage; here is only when one is complete and how it becomes so.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from raydelta.errors import UserError

MANIFEST = "stage.json"


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


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text)
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
