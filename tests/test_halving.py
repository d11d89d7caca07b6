import math

import pytest

from raydelta.halving import Rungs, expect_steps, make_milestones


def test_milestones_fall_on_checkpoints() -> None:
    assert make_milestones(160, 0.2, 3, 32) == [32, 96]
    assert make_milestones(160, 0.2, 3, 1000) == [32, 96], "checkpoints become as frequent as the rungs are"
    assert make_milestones(160, 0.2, 3, 20) == [40, 120]
    assert make_milestones(2, 0.9, 3, 5) == [1]
    assert make_milestones(100, 1.0, 3, 5) == [], "nothing stops early"


def test_expected_steps() -> None:
    assert expect_steps(12, [32, 96, 160], 3) == 12 * 32 + 4 * 64 + 2 * 64
    assert expect_steps(5, [160], 3) == 5 * 160


def test_the_best_of_a_closed_rung_go_on_and_the_rest_never_do() -> None:
    rungs = Rungs([10, 30], 3)
    for number in range(7):
        assert rungs.record(f"{number}", 10, float(number))
        assert not rungs.record(f"{number}", 20, 100.0), "only the first report at a rung counts"
    waiting = [f"{number}" for number in range(7)]
    assert rungs.decide(waiting, []) == ("6", [])
    assert rungs.record("6", 30, 1.0)
    assert rungs.decide(waiting, []) == ("5", []), "the lower rung first"
    assert rungs.record("5", 35, 2.0)
    assert rungs.decide(waiting, []) == ("4", [])
    assert rungs.record("4", 30, 3.0)
    assert rungs.decide(waiting, []) == ("4", ["0", "1", "2", "3"]), "four of seven were not among the best three"
    assert rungs.decide(["5", "6"], []) == (None, ["5", "6"]), "one of three"


def test_while_another_trial_can_still_come_only_who_is_surely_among_the_best_goes_on() -> None:
    rungs = Rungs([10], 3)
    rungs.record("a", 10, 1.0)
    rungs.record("b", 10, 2.0)
    assert rungs.decide(["a", "b"], ["c"]) == (None, [])
    assert rungs.decide(["a", "b"], []) == ("b", []), "the third has failed"
    rungs.record("c", 10, 3.0)
    assert rungs.decide(["a", "b", "c"], ["d"]) == ("c", [])
    assert rungs.decide(["a", "b"], ["c", "d"]) == (None, []), "one of three is on its way"
    rungs.record("d", 10, 4.0)
    assert rungs.decide(["a", "b", "d"], ["c"]) == ("d", [])
    assert rungs.decide(["a", "b"], ["c", "d"]) == (None, ["a", "b"]), "nobody can come any more"


def test_who_finished_elsewhere_counts_on_every_rung() -> None:
    rungs = Rungs([10, 30], 2)
    assert rungs.record("a", 40, 5.0)
    assert not rungs.record("a", 40, 5.0)
    rungs.record("b", 10, 6.0)
    assert rungs.decide(["b"], []) == ("b", [])


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_trial_without_a_score_is_the_worst(score: float) -> None:
    rungs = Rungs([10], 2)
    rungs.record("a", 10, score)
    rungs.record("b", 10, 0.0)
    assert rungs.decide(["a", "b"], []) == ("b", [])
