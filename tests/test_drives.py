"""Left-out drives: which photographs are learned from, with labels and without, and which are tested."""

import pytest

from benchmarks.drives import divide
from raydelta.data.shards import StoredRow
from raydelta.errors import UserError


def rows(**drives: int) -> list[StoredRow]:
    """Photographs of some drives, in the order in which names sort."""
    names = sorted((f"{drive}_{number}", drive) for drive, count in drives.items() for number in range(count))
    return [
        {"id": name, "sequence": drive, "image": name.encode(), "label": b"label", "height": 2, "width": 3}
        for name, drive in names
    ]


def test_a_whole_drive_is_left_out() -> None:
    splits = divide(rows(city=3, village=4), "village", None)
    assert [row["id"] for row in splits["train"]] == ["city_0", "city_1", "city_2"]
    assert [row["id"] for row in splits["test"]] == [f"village_{number}" for number in range(4)]


def test_half_of_a_drive_is_learned_from_without_labels_and_a_gap_is_left_out() -> None:
    splits = divide(rows(city=3, village=13), "village", 4)
    labelled = {row["id"]: row["label"] is not None for row in splits["train"]}
    assert labelled == {f"city_{n}": True for n in range(3)} | {f"village_{n}": False for n in range(6)}
    assert [row["id"] for row in splits["test"]] == ["village_10", "village_11", "village_12"]  # by number, not by name
    assert all(row["label"] == b"label" for row in splits["test"])


def test_a_gap_that_leaves_nothing_to_test_is_refused() -> None:
    assert len(divide(rows(village=6), "village", 2)["test"]) == 1
    for gap in (3, 10):
        with pytest.raises(UserError, match=f"--adapt {gap}: village has 6 photographs"):
            divide(rows(village=6), "village", gap)
