from typing import get_args

from raydelta.recipes import METHODS, Kind, MethodName


def test_every_method_name_has_an_entry() -> None:
    assert set(get_args(MethodName)) == set(METHODS)
    assert {method.kind for method in METHODS.values()} | {"expert"} == set(get_args(Kind))
