import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.headroom import analyse
from raydelta.config import load_config, override
from raydelta.errors import UserError
from raydelta.results.report import write_report
from raydelta.selection.headroom import REPEATS, Headroom, explain_by, format_cost, measure_headroom, plan
from raydelta.training.job import Job, label_ids, make_job
from raydelta.training.run import train_here
from tests.sets import REAL_NAMES, STEPS, SYNTHETIC, every_label, write_set
from tests.tiny import TINY

KNOWN = {name for name, _ in REAL_NAMES[:10]}


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("headroom")
    sets = {
        "data.synthetic": write_set(folder / "simulated", "synthetic", [(f"s{i}", "all") for i in range(SYNTHETIC)]),
        "data.real": write_set(
            folder / "street",
            "street",
            REAL_NAMES,
            lambda name, mask: every_label(name, mask) if name in KNOWN else None,
        ),
    }
    shutil.copy(folder / "street" / "train-00000.parquet", folder / "street" / "test-00000.parquet")
    config = override(load_config(overrides=TINY | STEPS | {"labels.budget": 3, "labels.validation": 2}), sets)
    expert = make_job("expert", config, folder / "runs")
    train_here(expert)
    job = make_job("translator", config, folder / "runs", expert.directory)
    train_here(job)
    return job


def headroom(mious: list[float], repeats: list[float]) -> Headroom:
    return Headroom(
        method="joint training",
        budget=8,
        validation=2,
        sets=[["a"]] * len(mious),
        mious=mious,
        repeats=repeats,
        explained=[],
        minutes=1,
    )


def test_the_plan_is_different_sets_of_known_labels_and_the_first_again_with_other_seeds(translator: Job) -> None:
    jobs = plan(translator, 3, 5)
    assert len(jobs) == 5 + REPEATS - 1
    assert len({job.directory for job in jobs}) == len(jobs)
    _, validation = label_ids(translator)
    sets = [label_ids(job)[0] for job in jobs]
    assert all(set(names) <= KNOWN - set(validation) and len(set(names)) == 3 for names in sets)
    assert len({frozenset(names) for names in sets[:5]}) > 1
    assert all(names == sets[0] for names in sets[5:])
    assert len({job.config.seed for job in jobs[5:]} | {jobs[0].config.seed}) == REPEATS
    assert [job.directory for job in plan(translator, 3, 5)] == [job.directory for job in jobs], "a rerun finds them"
    assert all(job.kind == "joint training" for job in jobs)


def test_too_few_known_labels_are_refused_with_what_would_do(translator: Job) -> None:
    with pytest.raises(UserError, match=r"8 labels are known .* random sets of 5 that differ: measure with at most 4"):
        plan(translator, 5, 16)
    with pytest.raises(UserError, match="at least 2 sets"):
        plan(translator, 3, 1)


def test_what_it_costs_is_said_before(translator: Job) -> None:
    assert format_cost(19, 80, 12.0, 2) == (
        "19 trainings (joint training, 80 steps) of about 0:12, 2 at once: about 2 minutes"
    )
    assert format_cost(1, 80, 12.0, 1).endswith("of about 0:12: about 1 minute")


def test_advice_follows_the_gain_and_the_noise() -> None:
    flat = headroom([30.0, 31.0, 30.5, 30.5], [30.0, 30.2, 30.1, 30.0])
    assert flat.gain == pytest.approx(0.5)
    assert flat.advice.startswith("Do not bother choosing: the best of 4 random sets is 0.5 points above")
    assert "--strategy stride" in flat.advice
    noisy = headroom([30.0, 36.0, 30.0, 30.0], [30.0, 36.0, 27.0, 33.0])
    assert noisy.advice.startswith("Hard to say")
    assert noisy.left == 0, "seeds differ by more than sets"
    partly = headroom([30.0, 36.0, 30.0, 30.0], [30.0, 34.8, 30.0, 30.0])
    assert partly.gain == 4.5
    assert partly.left == pytest.approx(partly.noise * 0.75, rel=0.01), "variances 9 and 5.76 leave 3.24: 1.8 of 2.4"
    assert partly.left < 2
    assert f"which leaves about {partly.left:.1f} to the choice" in partly.advice
    clear = headroom([30.0, 36.0, 30.0, 30.0], [30.0, 30.1, 30.0, 30.2])
    assert clear.advice.startswith("Choosing may pay: the best of 4 random sets is 4.5 points above")


def test_the_noise_is_what_the_largest_of_so_many_normal_values_is_above_their_mean() -> None:
    random = np.random.default_rng(0)
    repeats = [0.0, 1.0, 2.0, 3.0]
    expected = random.normal(0, np.std(repeats, ddof=1), (20000, 16)).max(1).mean()
    assert headroom([1.0] * 16, repeats).noise == pytest.approx(expected, rel=0.02)


def test_the_benchmark_tells_the_spread_of_sets_from_that_of_seeds() -> None:
    random = np.random.default_rng(0)
    of_sets, of_seeds = random.normal(0, 2.0, (400, 1)), random.normal(0, 5.0, 3)
    found = analyse(30 + of_sets + of_seeds + random.normal(0, 1.0, (400, 3)))
    assert found.between_sets == pytest.approx(2.0, rel=0.1)
    assert found.between_seeds == pytest.approx(1.0, rel=0.1), "what a seed is worth to all sets is no noise"
    alone = analyse(30 + random.normal(0, 1.0, (16, 3)))
    assert alone.best > 0.3
    assert alone.headroom < 0.5, "sixteen trainings of one and the same set have a best one, too"


def test_what_explains_the_spread_is_told_from_what_does_not() -> None:
    random = np.random.default_rng(0)
    values = random.random(16)
    found = explain_by("drives", values, 30 + 5 * values + random.normal(0, 0.3, 16))
    assert found.share > 0.8
    assert 0.1 < found.chance < 0.5, "sixteen points explain a lot by chance"
    assert "more than chance would" in str(found)
    nothing = explain_by("drives", values, random.normal(size=16))
    assert nothing.share < nothing.chance
    assert "no more than chance may" in str(nothing)
    assert explain_by("drives", np.ones(16), values).share == 0, "all sets alike explain nothing"


def test_sets_are_trained_evaluated_written_reported_and_not_trained_again(
    ray_session: None, translator: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    done = plan(translator, 3, 2)[0]
    train_here(done)  # as if the command had been killed after the first
    found = measure_headroom(translator.directory, None, 2, said.append)
    assert said[0].startswith(f"{1 + REPEATS - 1} trainings (joint training, 2 steps) of about 0:")
    assert len(found.mious) == 2
    assert len(found.repeats) == REPEATS
    assert found.repeats[0] == found.mious[0]
    assert [each.property.split()[0] for each in found.explained] == ["drives", "classes"]
    written = json.loads((translator.directory / "headroom.json").read_text())
    assert written["mious"] == found.mious
    assert written["findings"] == found.lines()
    assert found.advice in found.lines()
    assert not list((translator.directory.parent / "unfinished").glob("timing-*"))
    said.clear()
    assert measure_headroom(translator.directory, None, 2, said.append) == found
    assert not said, "nothing is left to train"
    page = write_report(translator.directory).read_text()
    assert found.lines()[0].split(":")[0] in page


def test_without_test_images_there_is_nothing_to_compare_on(translator: Job, tmp_path: Path) -> None:
    real = Path(translator.config.data.real)
    kept = (real / "manifest.json").read_text()
    manifest = json.loads(kept)
    del manifest["splits"]["test"]
    (real / "manifest.json").write_text(json.dumps(manifest))
    try:
        with pytest.raises(UserError, match="no labelled test split to compare label sets on"):
            measure_headroom(translator.directory, None, 2)
    finally:
        (real / "manifest.json").write_text(kept)
