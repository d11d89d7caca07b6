"""The rooms of the package: imports run one way, every room says what it is for, and the tests mirror them."""

import ast
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raydelta"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]


def test_imports_run_one_way() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_the_chain_in_contributing_is_the_one_that_is_checked() -> None:
    chain = " → ".join(layer.replace(" | ", ", ") for layer in LAYERS)
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    assert f"`{chain}`" in text


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_says_what_it_is_for(room: Path) -> None:
    words = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert words is not None and 2 <= len(words.splitlines()) <= 6, words
    assert "In: " in words and "Out: " in words


def test_a_module_is_named_for_what_it_holds() -> None:
    assert [path for path in PACKAGE.rglob("*.py") if "Not here" in path.read_text()] == []


def test_the_tests_mirror_the_rooms() -> None:
    folders = {path.parent.name for path in ROOT.glob("tests/*/__init__.py")}
    assert folders == {room.name for room in ROOMS}
