from collections import Counter

import numpy as np
import pytest

from raydelta.config import LabelConfig
from raydelta.errors import UserError
from raydelta.labels import choose_labels, order_labels

EVEN = [(f"image_{index:03d}", f"drive {index // 20}") for index in range(100)]
UNEVEN = [(f"image_{index:03d}", f"drive {min(index // 2, 3)}") for index in range(60)]
SEQUENCE = dict(EVEN)


def choose(budget: int, seed: int = 0, validation: int = 8) -> tuple[list[str], list[str]]:
    return choose_labels(EVEN, LabelConfig(budget=budget, validation=validation), seed)


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
