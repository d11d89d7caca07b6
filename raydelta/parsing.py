"""YAML and JSON that somebody else may have written: read within bounds, and refused with a reason beyond them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raydelta.errors import UserError
from raydelta.storage.files import read_bytes

MAX_BYTES = 64 * 2**20  # of JSON
MAX_YAML = 8 * 2**20
MAX_VALUES = 2_000_000  # in one file, every use of a YAML alias counted
MAX_DEPTH = 50
MAX_BRACKETS = 1000  # open at once in a YAML text; PyYAML takes time that grows with their square


def read_yaml_file(path: str | Path) -> Any:
    """The content of a YAML or JSON file on this machine.

    Raises:
        UserError: no file, too large, not YAML, nested too deeply, or its aliases stand for too much.
    """
    try:
        text = read_bytes(str(path), MAX_YAML).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        _check_brackets(text)
        return _bounded(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: numbers of thousands of digits
        raise UserError(f"{path}: cannot be read as YAML: {_reason(error)}") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, nested too deeply, or a number of thousands of digits.
    """
    try:
        return _bounded(json.loads(text))
    except RecursionError as error:
        raise ValueError(_reason(error)) from error


def _check_brackets(text: str) -> None:
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_BRACKETS:
            raise RecursionError


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _bounded(tree: Any) -> Any:
    """The tree, if it is small where it is written out: an alias of an alias can stand for billions of values."""
    level, values = [tree], 1
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
            values += len(children)
            if values > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values")
            below.extend(children)
        if not below:
            return tree
        level = below
    raise RecursionError
