from typing import get_args

from raydelta.recipes import METHODS, Kind
from raydelta.search_space import Method


def test_the_methods_of_a_space_are_the_methods_there_are() -> None:
    assert set(get_args(Method)) == set(METHODS)
    assert {method.kind for method in METHODS.values()} | {"expert"} == set(get_args(Kind))
