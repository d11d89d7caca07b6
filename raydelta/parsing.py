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
TOO_DEEP = "nested too deeply"
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
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: not YAML.
        ValueError: nested too deeply, aliases that stand for too much, or a number of thousands of digits.
    """
    try:
        _check_brackets(text)
        return _bounded(yaml.safe_load(text))
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, nested too deeply, a number of thousands of digits, or text that is none (half a
            surrogate pair, which no file or terminal takes).
    """
    try:
        tree = _bounded(json.loads(text))
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    json.dumps(tree, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return tree


def read_json_file(path: Path) -> Any:
    """The value of a JSON file on this machine.

    Raises:
        OSError: it cannot be read.
        ValueError: as ``parse_json``; too large, a pipe or a device.
    """
    return parse_json(read_bytes(str(path), MAX_BYTES))


def _check_brackets(text: str) -> None:
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_BRACKETS:
            raise RecursionError


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
