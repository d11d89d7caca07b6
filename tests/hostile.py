"""Files that were made to break their reader: mutations of good ones, and what a reader may say of them."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from raydelta.errors import UserError


def only_user_errors(*calls: Callable[[], object]) -> None:
    for call in calls:
        try:
            call()
        except UserError as error:
            assert str(error)


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """Some bytes of a file changed, put in or cut out."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 8))):
        # Most of what steers a reader is near the beginning or the end.
        place = draw(st.one_of(st.integers(0, len(original)), st.integers(0, 64), st.integers(1, 64).map(lambda n: -n)))
        place = min(place if place >= 0 else max(0, len(content) + place), max(0, len(content) - 1))
        match draw(st.sampled_from(["set", "insert", "cut", "end"])):
            case "set" if content:
                content[place] = draw(st.integers(0, 255))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del content[place : place + draw(st.integers(1, 16))]
            case _:
                del content[place:]
    return bytes(content)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from(["", "..", "../../escaped", "/etc/x", "\x1b[2J", "a\\b", "train", "camvid11", "\ud800"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def replaced(tree: Any, draw: st.DrawFn) -> Any:
    """The tree with a value somewhere in it replaced, removed or put beside the others."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(tree)))
        match draw(st.integers(0, 6)):
            case 0:
                return {name: value for name, value in tree.items() if name != key}
            case 1:
                return tree | {draw(st.text(max_size=8)): draw(VALUES)}
            case _:
                return tree | {key: replaced(tree[key], draw)}
    if isinstance(tree, list) and tree and draw(st.integers(0, 9)):
        index = draw(st.integers(0, len(tree) - 1))
        return [*tree[:index], replaced(tree[index], draw), *tree[index + 1 :]]
    return draw(VALUES)
