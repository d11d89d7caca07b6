"""What ``import raydelta`` offers: a change here breaks somebody's script, and belongs into the changelog."""

import inspect
import subprocess
import sys

import pytest

import raydelta

PUBLIC = {
    "UserError": [],
    "evaluate": ["run", "trust"],
    "export": ["run", "out", "method", "images", "preprocessor"],
    "import_dataset": ["source", "target", "options", "workers", "listing", "progress"],
    "load": ["path", "method"],
    "load_config": ["preset", "file", "overrides"],
    "predict": ["run", "inputs", "out", "method", "taxonomy", "kinds", "batch", "window"],
    "report": ["run", "trust"],
    "select": ["run", "count", "strategy", "method", "out", "grid", "window", "trust"],
    "train_expert": ["config", "runs"],
    "train_row": ["row", "config", "runs"],
    "train_translator": ["config", "runs"],
    "tune": ["space", "overrides", "preset", "config_file", "runs", "resume", "announce"],
}


def test_the_public_names_are_these() -> None:
    assert sorted(raydelta.__all__) == sorted(PUBLIC)
    assert set(dir(raydelta)) == {*PUBLIC, "__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_function_keeps_its_parameters_and_says_what_it_does(name: str) -> None:
    value = getattr(raydelta, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        assert list(inspect.signature(value).parameters) == PUBLIC[name]


def test_the_import_loads_neither_torch_nor_ray() -> None:
    code = "import sys, raydelta; raydelta.load_config; raydelta.UserError; "
    code += "assert not {'torch', 'ray'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'raydelta' has no attribute 'nothing'"):
        raydelta.nothing  # noqa: B018
