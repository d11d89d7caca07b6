import re
from typing import get_args

import pytest

from raydelta.errors import UserError
from raydelta.recipes import METHODS, Kind, MethodName, family_of, find_method, short_name


def test_every_method_name_has_an_entry() -> None:
    assert set(get_args(MethodName)) == set(METHODS)
    assert {method.kind for method in METHODS.values()} | {"expert"} == set(get_args(Kind))


def test_a_method_is_found_by_its_short_and_its_printed_name() -> None:
    for method in METHODS:
        assert find_method(method) == find_method(short_name(method)) == method
        assert re.fullmatch("[a-z-]+", short_name(method))
    assert len({short_name(method) for method in METHODS}) == len(METHODS)
    assert find_method("mean-teacher-translated") == "mean teacher, translated"
    assert find_method("fda") == "FDA"


def test_a_misspelt_or_untrained_method_is_said_with_what_there_is() -> None:
    for name, message in [
        ("studnet", "no method 'studnet': did you mean student? there are unguided, guided, .*mean-teacher-translated"),
        ("x", "no method 'x': there are unguided"),
        (7, "no method 7: there are"),
    ]:
        with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*")):
            find_method(name)
    with pytest.raises(UserError, match=r"^student was not trained there; trained are guided, mean-teacher$"):
        find_method("student", ["guided", "mean teacher"])


def test_the_expert_stays_as_it_is_where_only_photographs_are_translated() -> None:
    frozen = {name for name in (*METHODS, "synthetic only") if family_of(name) == "frozen"}
    without_labels = {"synthetic only", "blended", "colours matched", "unguided"}
    assert frozen == without_labels | {"guided", "taught", "guided, shuffled labels"}
    assert [family_of(name) for name in ("guided, entropy", "fine-tuned, random")] == ["frozen", "retrained"]
