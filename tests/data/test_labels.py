from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from raydelta.config import LabelCells, LabelConfig, LabelIds, load_config, override, save_config
from raydelta.data.labels import cell_box, check_bought, choose_labels, count_bought, keep_bought, order_labels
from raydelta.errors import UserError

EVEN = [(f"image_{index:03d}", f"drive {index // 20}") for index in range(100)]
UNEVEN = [(f"image_{index:03d}", f"drive {min(index // 2, 3)}") for index in range(60)]
SEQUENCE = dict(EVEN)


def choose(budget: int, seed: int = 0, validation: int = 8) -> tuple[list[str], list[str]]:
    return choose_labels(EVEN, LabelConfig(budget=budget, validation=validation), seed, budget)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_nest_and_are_validated_on_the_same_images(seed: int) -> None:
    largest, validation = choose(37, seed)
    for budget in (0, 1, 14, 36):
        train, held_out = choose(budget, seed)
        assert train == largest[:budget]
        assert held_out == validation
    assert len(set(largest)) == 37
    assert len(set(validation)) == 8
    assert not set(largest) & set(validation)
    assert set(largest) | set(validation) <= set(SEQUENCE)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [3, 14, 37, 92])
def test_labels_are_spread_over_the_sequences(seed: int, budget: int) -> None:
    train, validation = choose(budget, seed)
    for chosen in (train, validation, validation + train):
        counts = Counter(SEQUENCE[name] for name in chosen)
        most = max(counts.values())
        assert all(most - counts[sequence] <= 1 for sequence in set(SEQUENCE.values()))


def test_longer_sequences_go_on_when_shorter_ones_are_used_up() -> None:
    order = order_labels(UNEVEN, seed=1)
    sequences = [dict(UNEVEN)[name] for name in order]
    assert set(sequences[:4]) == set(sequences[4:8]) == {f"drive {index}" for index in range(4)}
    assert set(sequences[8:]) == {"drive 3"}
    assert sorted(order) == [name for name, _ in UNEVEN]


def test_the_choice_is_the_same_every_time_and_whatever_the_order_of_the_input() -> None:
    shuffled = [EVEN[index] for index in np.random.default_rng(0).permutation(len(EVEN))]
    assert order_labels(EVEN, 3) == order_labels(EVEN, 3) == order_labels(shuffled, 3)


def test_seeds_differ_in_images_and_not_only_in_their_order() -> None:
    sets = [frozenset(choose(14, seed)[0]) for seed in range(6)]
    assert len(set(sets)) == 6


def test_which_sequence_comes_first_depends_on_the_seed() -> None:
    assert len({SEQUENCE[order_labels(EVEN, seed)[0]] for seed in range(20)}) > 1


def test_a_budget_beyond_the_labels_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError) as caught:
        choose(93)
    assert all(number in str(caught.value) for number in ("93", "8", "100"))
    assert "labels.budget" in str(caught.value)
    assert len(choose(92)[0]) == 92


def test_validation_beyond_the_labels_is_refused_even_with_no_budget() -> None:
    with pytest.raises(UserError, match=r"labels\.validation = 101"):
        choose(0, validation=101)


def test_minus_one_is_all_that_validation_leaves() -> None:
    train, validation = choose_labels(EVEN, LabelConfig(budget=14, validation=8), 0, budget=-1)
    assert sorted(train + validation) == sorted(SEQUENCE)
    assert train[:14] == choose(14)[0]
    assert validation == choose(14)[1]


def test_a_budget_given_apart_wins_over_the_config() -> None:
    assert choose_labels(EVEN, LabelConfig(budget=14, validation=8), 0, budget=5)[0] == choose(5)[0]


NAMES = [name for name, _ in EVEN]


def bought(
    train: list[str], budget: int | None = None, validation: list[str] | None = None, count: int = 8, seed: int = 0
) -> tuple[list[str], list[str]]:
    ids = LabelIds(train=tuple(train), validation=tuple(validation or ()))
    config = LabelConfig(budget=budget or len(train), validation=count, ids=ids)
    return choose_labels(EVEN, config, seed, config.budget)


def not_validating(count: int) -> list[str]:
    return [name for name in NAMES if name not in choose(0)[1]][:count]


def test_bought_labels_come_in_the_order_of_the_list_and_budgets_nest() -> None:
    names = not_validating(10)[::-1]
    assert bought(names) == (names, choose(0)[1])
    assert bought(names, budget=4)[0] == names[:4]


def test_the_list_may_name_what_validates_whatever_else_is_labelled() -> None:
    assert bought(NAMES[:5], validation=NAMES[50:58]) == (NAMES[:5], NAMES[50:58])
    assert bought(NAMES[:5], validation=NAMES[50:58], seed=3) == (NAMES[:5], NAMES[50:58])
    assert bought(NAMES[:5], validation=NAMES[50:58], count=3)[1] == NAMES[50:53]


def test_all_labels_are_all_that_validation_leaves_whatever_the_list_says() -> None:
    ids = LabelIds(train=tuple(NAMES[:5]), validation=tuple(NAMES[50:58]))
    train, validation = choose_labels(EVEN, LabelConfig(budget=5, ids=ids), 0, budget=-1)
    assert sorted(train + validation) == NAMES
    assert len(train) == 92


def test_a_bought_label_that_validates_is_refused_and_named() -> None:
    validating = choose(0)[1][0]
    with pytest.raises(UserError, match=rf"labels\.ids: {validating} would be trained on and validate too \(seed 0\)"):
        bought([*not_validating(3), validating])


def test_a_budget_beyond_the_list_is_refused() -> None:
    with pytest.raises(UserError, match=r"labels\.budget = 6, but labels\.ids names 5 to train on"):
        bought(not_validating(5), budget=6)
    with pytest.raises(UserError, match=r"labels\.validation = 8, but labels\.ids names 7 to validate"):
        bought(NAMES[:5], validation=NAMES[50:57])


def test_an_id_that_is_unknown_or_unlabelled_is_named() -> None:
    labelled = dict.fromkeys(NAMES[:4], True) | {NAMES[4]: False}
    check_bought(LabelIds(train=tuple(NAMES[:2]), validation=(NAMES[3],)), labelled)
    with pytest.raises(
        UserError, match=r"labels\.ids: elsewhere \(1 of 2\): no such photographs in the training split"
    ):
        check_bought(LabelIds(train=(NAMES[0], "elsewhere")), labelled)
    with pytest.raises(UserError, match=rf"labels\.ids: {NAMES[4]} \(1 of 2\): without a label there"):
        check_bought(LabelIds(train=(NAMES[0],), validation=(NAMES[4],)), labelled)


def test_the_config_holds_what_the_file_said(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("train: [b, a]\nvalidation: [c]\n")
    config = load_config(overrides=[f"labels.ids={file}"])
    assert config.labels.ids == LabelIds(train=("b", "a"), validation=("c",))
    save_config(config, tmp_path / "config.yaml")
    file.unlink()
    assert load_config(file=tmp_path / "config.yaml") == config == override(config, {"labels.budget": 14})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [a, b, a]", r"labels\.ids: named more than once: a"),
        ("train: [a, b]\nvalidation: [b]", r"labels\.ids: named more than once: b"),
        ("train: [1, 2]", r"labels.yaml: train\.0 = 1: .*string"),
        ("trian: [a]", "unknown field 'trian'; allowed here: train, validation"),
        ("- a\n- b", "expected a mapping of fields, found list"),
        ("train: [a", "cannot be read as YAML"),
    ],
)
def test_a_bad_file_of_ids_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(overrides=[f"labels.ids={tmp_path / 'labels.yaml'}"])
    with pytest.raises(UserError, match=r"nowhere.*: cannot be read"):
        load_config(overrides=["labels.ids=nowhere.yaml"])


def test_bad_ids_in_a_config_are_one_message() -> None:
    with pytest.raises(UserError, match="unknown field 'trian'; allowed here: train, validation"):
        load_config(overrides={"labels.ids": {"train": ["a"], "trian": ["a"]}})
    with pytest.raises(UserError, match=r"labels\.ids = 5"):
        load_config(overrides=["labels.ids=5"])


CELLS = {"grid": [4, 2], "images": {"b": [0, 5]}}


def test_cells_are_kept_in_a_config_and_ids_without_cells_are_written_as_before(tmp_path: Path) -> None:
    whole = LabelIds(train=("a", "b"))
    assert whole.model_dump() == {"train": ("a", "b"), "validation": ()}, "stages of before keep their names"
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump({"train": ["a", "b"], "cells": CELLS}))
    config = load_config(overrides=[f"labels.ids={tmp_path / 'labels.yaml'}"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(file=tmp_path / "config.yaml") == config
    assert config.labels.ids is not None
    assert config.labels.ids.cells is not None
    assert config.labels.ids.cells.images == {"b": (0, 5)}


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ({"grid": [4, 2], "images": {"b": [8]}}, r"cells of b: \[8\]: name each cell once, 0 to 7 \(the grid is 4x2\)"),
        ({"grid": [4, 2], "images": {"b": [1, 1]}}, "name each cell once"),
        ({"grid": [4, 2], "images": {"b": []}}, "at least 1 item"),
        ({"grid": [4, 2], "images": {"c": [1]}}, "cells of c: not among the images under train"),
        ({"grid": [0, 2], "images": {}}, "greater than or equal to 1"),
    ],
)
def test_cells_that_cannot_be_are_refused(cells: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_config(overrides={"labels.ids": {"train": ["a", "b"], "cells": cells}})


def test_what_was_not_bought_of_an_image_is_void() -> None:
    labels = np.ones((2, 8, 16), np.uint8)
    kept = keep_bought(["a", "b"], labels, LabelCells(**CELLS))  # type: ignore[arg-type]
    assert (kept[0] == 1).all(), "an image without named cells is whole"
    assert (kept[1, :4, :4] == 1).all()
    assert (kept[1, 4:, 4:8] == 1).all()
    assert (kept[1] == 255).sum() == 6 * 16
    assert kept.dtype == np.uint8
    assert (labels == 1).all(), "the argument is left as it was"
    assert count_bought(["a", "b"], LabelCells(**CELLS)) == 1.25  # type: ignore[arg-type]
    assert count_bought(["a", "b"], None) == 2


def test_a_cell_s_box_is_what_its_mean_is_taken_over() -> None:
    assert [cell_box(cell, (2, 2), (10, 6)) for cell in range(4)] == [
        (0, 0, 5, 3),
        (5, 0, 10, 3),
        (0, 3, 5, 6),
        (5, 3, 10, 6),
    ]
    assert [cell_box(cell, (2, 1), (5, 3)) for cell in range(2)] == [(0, 0, 3, 3), (2, 0, 5, 3)], "no pixel is lost"
