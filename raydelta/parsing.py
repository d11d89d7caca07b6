"""What somebody else may have written: YAML and JSON read within bounds, ``a.b=c``, trees checked against a model."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raydelta.errors import UserError
from raydelta.storage.files import read_bytes

Model = TypeVar("Model", bound=BaseModel)

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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping (an empty file is an empty one)."""
    tree = read_yaml_file(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(tree).__name__}")
    _check_keys(tree, path)
    return tree


def _check_keys(tree: Mapping[Any, Any], path: str | Path) -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r} is no field name")
        if isinstance(value, Mapping):
            _check_keys(value, path)


def parse_override(text: str) -> tuple[str, Any]:
    """``"cycle.real=5"`` → ``("cycle.real", 5)``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} is not of the form section.field=value")
    try:
        return key, read_scalar(value)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"override {text!r}: the value is not valid YAML: {error}") from error


def read_scalar(value: str) -> Any:
    """YAML, but 1e-4 is a number too (YAML 1.1 wants 1.0e-4)."""
    parsed = parse_yaml(value)
    if isinstance(parsed, str):
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def nest(key: str, value: Any) -> dict[str, Any]:
    """``("a.b", 1)`` → ``{"a": {"b": 1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def merge(tree: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Set the leaves of a nested mapping in another one; what it does not name stays."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def validated(model: type[Model], tree: dict[str, Any], where: str = "") -> Model:
    """The model built from a tree; pydantic's complaints become one UserError that names each field."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_complaint(model, problem) for problem in error.errors()]
        raise UserError("\n".join(f"{where}: {line}" if where else line for line in lines)) from error


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    """The model that a field leads to, through optional ones and containers."""
    for part in location:
        if part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inside in get_args(annotation):
        yield from _models_in(inside)


def _complaint(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    field, value = ".".join(location), problem["input"]
    if problem["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], parent.model_fields, n=1)
        meant = f" (did you mean {'.'.join([*location[:-1], near[0]])}?)" if near else ""
        return f"unknown field {field!r}; allowed here: {', '.join(parent.model_fields)}{meant}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{field} = {value!r}: {problem['msg']}"
