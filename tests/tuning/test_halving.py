import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from raydelta.results.sweep import Trial, read_trials
from raydelta.tuning.halving import Rungs, expect_steps, make_milestones
from raydelta.tuning.tune import tune
from tests.test_search_space import write_space
from tests.tiny import TINY_ARGUMENTS


def test_milestones_fall_on_checkpoints() -> None:
    assert make_milestones(160, 0.2, 3, 32) == [32, 96]
    assert make_milestones(160, 0.2, 3, 1000) == [32, 96], "checkpoints become as frequent as the rungs are"
    assert make_milestones(160, 0.2, 3, 20) == [40, 120]
    assert make_milestones(2, 0.9, 3, 5) == [1]
    assert make_milestones(100, 1.0, 3, 5) == [], "nothing stops early"


def test_expected_steps() -> None:
    assert expect_steps(12, [32, 96, 160], 3) == 12 * 32 + 4 * 64 + 64
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
    lost = ["0", "1", "2", "3", "4"]
    assert rungs.decide(waiting, []) == ("5", lost), "two of seven went on, and of those two one does"
    assert rungs.decide(["6"], []) == (None, ["6"])


def test_nobody_goes_on_or_ends_while_another_trial_can_still_come() -> None:
    rungs = Rungs([10, 30], 3)
    for number, name in enumerate("abc"):
        rungs.record(name, 10, float(number))
    assert rungs.decide(["a", "b", "c"], ["d"]) == (None, [])
    assert rungs.decide(["a", "b", "c"], []) == ("c", []), "the fourth has failed"
    assert rungs.decide(["a", "b"], ["c"]) == (None, ["a", "b"]), "but may yet come to the next rung"
    rungs.record("c", 30, 0.0)
    assert rungs.decide(["c"], []) == ("c", [])


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


@pytest.mark.parametrize(
    ("count", "concurrent_ones", "ends"),
    [(3, (None,), [4, 4, 20]), pytest.param(7, (1, None), [4] * 5 + [12, 20], marks=pytest.mark.slow, id="seven")],
)
def test_the_best_trials_go_on_from_where_they_waited(
    count: int, concurrent_ones: tuple[int | None, ...], ends: list[int], runs: Path, tmp_path: Path
) -> None:
    at_once: list[list[Trial]] = []
    for concurrent in concurrent_ones:
        space = write_space(
            tmp_path,
            search={"guidance.weight": {"uniform": [0.1, 0.9]}},
            trials=count,
            scheduler="halving",
            grace=0.2,
            concurrent=concurrent,
            table={"methods": ["guided"]},
        )
        arguments = [*TINY_ARGUMENTS, "translator.steps=20", "compute.checkpoint_every=100"]
        outcome = tune(space, arguments, runs=runs)
        at_once.append(read_trials(outcome.directory))
    trials, *again = (sorted(found, key=lambda trial: trial.step) for found in at_once)
    known = [replace(trial, curve=[]) for trial in trials]
    for found in again:
        assert [replace(trial, curve=[]) for trial in found] == known, "the same choices, and nothing trained again"
    assert [trial.step for trial in trials] == ends
    assert {trial.state for trial in trials} == {"finished", "stopped early"}
    for rung in sorted({4, 12} & set(ends)):
        scores: dict[bool, list[float]] = {True: [], False: []}
        for trial in trials:
            if trial.step >= rung:
                scores[trial.step > rung] += [report["miou"] for report in trial.curve if report["step"] == rung]
        assert min(scores[True]) >= max(scores[False]), "the better ones went on"
    trained = [path.read_text() for path in runs.glob("**/translator-*/curve.jsonl")]
    steps = [[json.loads(line)["step"] for line in text.splitlines()] for text in trained]
    assert all(each == sorted(set(each)) for each in steps), "no step was trained twice"
    assert sum(map(len, steps)) == sum(ends) / 2, "and none that no trial wanted"
