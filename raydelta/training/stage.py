"""The manifest of a stage, ``stage.json``: what a finished training says of itself. It is written last."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for it on Python 3.11

from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.recipes import Kind
from raydelta.storage.bucket import fetch
from raydelta.storage.files import write_atomically
from raydelta.training.curve import Metrics, is_report

STAGE = "stage.json"


def is_beside(name: object) -> bool:
    """Whether a name leads to a directory beside, and nowhere else."""
    return isinstance(name, str) and name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\")


def _beside(name: object) -> object:
    if name is not None and not is_beside(name):
        raise ValueError(f"{name!r} names what does not lie beside it; not read")
    return name


def _figures(metrics: Metrics) -> Metrics:
    if not is_report(metrics):
        raise ValueError("a step or a figure is no number")
    return metrics


Beside = Annotated[str, BeforeValidator(_beside)]


class DataDescription(TypedDict):
    """What a stage says of a data set that it was trained on."""

    name: str
    domain: str
    splits: dict[str, dict[str, int]]  # → images, labelled


class Stage(TypedDict, total=False):
    """What ``stage.json`` holds; those of older versions lack some of it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    kind: Kind
    taxonomy: dict[str, Any]
    size: list[int]
    normalisation: list[float]
    data: dict[str, DataDescription]
    metrics: Annotated[Metrics, AfterValidator(_figures)]  # of its last step
    labels_train: list[str]
    labels_val: list[str]
    # Names of directories beside its own:
    expert: Beside | None
    translator: Beside | None
    student: Beside | None
    members: list[Beside]


_STAGE = TypeAdapter(Stage)


def read_stage(directory: Path) -> Stage | None:
    """The manifest of a complete stage, or None.

    Raises:
        UserError: the manifest is there but cannot be read, or names a directory elsewhere.
    """
    path = directory / STAGE
    fetch(directory, light=True, age=60 if path.exists() else 0)  # whether it was removed is not asked every time
    if not path.exists():
        return None
    try:
        return _STAGE.validate_python(read_json_file(path))
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        raise UserError(f"{path}: damaged stage, remove the directory to build it again: {error}") from error


def complete_stage(directory: Path, manifest: dict[str, Any]) -> None:
    """Declare a stage complete: its manifest is written last, and at once."""
    write_atomically(directory / STAGE, json.dumps(manifest, indent=1, default=str))
