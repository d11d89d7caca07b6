import json
import shutil
from pathlib import Path

import pytest

from raydelta.errors import UserError
from raydelta.results.importance import rank_knobs, varied_knobs
from raydelta.results.sweep import RUN, Trial, best_of, read_sweep, read_trials
from tests.sweep import SEARCH, make_sweep, make_trial


def trials(count: int) -> list[Trial]:
    made = [(overrides, reports[-1]["miou"]) for overrides, reports in map(make_trial, range(count))]
    return [Trial(overrides, miou, 10, 1.0, None, True, False) for overrides, miou in made]


def test_an_ended_sweep_reads_back(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=4)
    sweep = read_sweep(directory)
    assert sweep is not None
    assert (sweep.command, sweep.expert, list(sweep.space.search)) == ("raydelta tune made", "expert-1", list(SEARCH))
    read = read_trials(directory)
    assert [trial.state for trial in read] == ["failed", "finished", "finished", "stopped early"]
    assert [len(trial.curve) for trial in read] == [1, 40, 40, 20]
    assert read[0].error == "loss guidance is not finite on rank 0"
    assert read[1].miou == read[1].curve[-1]["miou"]


def test_results_without_rays_files_have_no_curves(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=4)
    shutil.rmtree(directory / "sweep")
    assert [(trial.state, trial.curve) for trial in read_trials(directory)][1:] == [
        ("finished", []),
        ("finished", []),
        ("stopped early", []),
    ]


def test_a_sweep_that_still_runs(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=4)
    (directory / "trials.json").unlink()
    folders = sorted((directory / "sweep").glob("ab_*"))
    (folders[0] / "error.txt").write_text("Traceback\n  many lines\nValueError: no such photograph\n")
    (folders[2] / "result.json").unlink()
    (folders[3] / "params.json").write_text("{")
    read = read_trials(directory)
    assert [(trial.state, trial.error) for trial in read] == [
        ("failed", "ValueError: no such photograph"),
        ("finished", None),
        ("unfinished", None),
    ]
    reports = (folders[1] / "result.json").read_text().splitlines()[:3]
    (folders[1] / "result.json").write_text("\n".join([*reports[:2], reports[2][:-1] + ', "done": true}']))
    assert read_trials(directory)[1].state == "stopped early"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": "x"}'])
def test_a_damaged_run_says_so(tmp_path: Path, text: str) -> None:
    directory = make_sweep(tmp_path, trials=1)
    (directory / RUN).write_text(text)
    with pytest.raises(UserError, match=r"run\.json: damaged, run the same raydelta tune again"):
        read_sweep(directory)


def test_a_newer_run_says_so(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=1)
    tree = json.loads((directory / RUN).read_text())
    (directory / RUN).write_text(json.dumps(tree | {"format": 2, "raydelta": "9.1"}))
    with pytest.raises(UserError, match=r"of a newer raydelta \(9\.1\)"):
        read_sweep(directory)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"miou": 3}]'])
def test_damaged_results_say_so(tmp_path: Path, text: str) -> None:
    directory = make_sweep(tmp_path, trials=1)
    (directory / "trials.json").write_text(text)
    with pytest.raises(UserError, match=r"trials\.json: damaged"):
        read_trials(directory)


def test_who_was_stopped_early_is_not_the_best_whatever_it_scored_then() -> None:
    early = Trial({}, 31.0, 4, 1.0, None, True, True)
    whole, other = (Trial({}, miou, 20, 1.0, None, True, False) for miou in (30.0, 29.0))
    failed = Trial({}, None, 20, 1.0, "out of memory", True, False)
    assert best_of([early, other, whole, failed]) is whole
    assert best_of([early, failed]) is early
    assert best_of([failed]) is None


def test_the_knob_that_decides_is_found() -> None:
    ranked = rank_knobs(trials(50))
    assert ranked[0].knob == "guidance.weight"
    assert sum(knob.share for knob in ranked) == pytest.approx(1)
    assert all(knob.low <= knob.high for knob in ranked)
    assert ranked[0].low > ranked[-1].high, "and told from what does not matter"


def test_too_few_trials_say_nothing_about_knobs() -> None:
    with pytest.raises(UserError, match="19 trials with a validation mIoU are too few to say, it takes 20"):
        rank_knobs(trials(19))
    same = [Trial({"cycle.real": 3.0}, 30.0 + number, 10, 1.0, None, True, False) for number in range(30)]
    with pytest.raises(UserError, match="no knob was given more than one value"):
        rank_knobs(same)


def test_knobs_of_any_type_can_be_ranked() -> None:
    made = [
        Trial(
            {"a.list": [1, number % 2], "a.none": None if number % 3 else 4, "a.same": 1},
            number % 7,
            1,
            1.0,
            None,
            True,
            False,
        )
        for number in range(24)
    ]
    assert varied_knobs(made) == ["a.list", "a.none"]
    assert {knob.knob for knob in rank_knobs(made)} == {"a.list", "a.none"}
