from collections.abc import Sequence
from math import log2
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from raydelta.config import override
from raydelta.recipes import MethodName
from raydelta.results.evaluate import evaluate_job
from raydelta.results.label_curve import area, format_area, format_clicks, format_saving, labels_for, sum_up
from raydelta.results.table import read_table
from raydelta.search_space import ReplayConfig
from raydelta.selection.replay import replay
from raydelta.training.job import Job, label_ids, read_job
from raydelta.training.run import train_here
from raydelta.tuning.tune import Outcome, tune
from tests.sets import REAL_NAMES, every_label, write_set
from tests.test_results import row
from tests.tiny import TINY

REPLAY = {
    "config": TINY | {"labels.validation": 1},
    "replay": {"strategies": ["random", "entropy"], "budgets": [3, 5], "steps": 2, "window": 1},
}


METHODS = {1: ["guided"], 2: ["guided", "fine-tuned"]}
"""What is trained on the labels that are bought, by the number of seeds."""


@pytest.fixture(scope="module", params=[(0,), pytest.param((0, 1), marks=pytest.mark.slow, id="two seeds")])
def seeds(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture(scope="module")
def outcome(seeds: tuple[int, ...], ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("replay")
    space = folder / "replay.yaml"
    table = {"seeds": list(seeds), "methods": METHODS[len(seeds)]}
    space.write_text(yaml.safe_dump(REPLAY | {"table": table}))
    return tune(str(space), runs=folder / "runs")


def test_every_strategy_buys_its_labels_round_by_round(outcome: Outcome, seeds: tuple[int, ...]) -> None:
    runs = outcome.directory.parent
    jobs = [read_job(path.parent) for path in runs.glob("translator-*/stage.json")]
    firsts = [job for job in jobs if job.translator is None]
    assert sorted(job.config.seed for job in firsts) == list(seeds), "the strategies of a seed begin with the same one"
    assert sorted(len(label_ids(job)[0]) for job in jobs) == sorted([3, 5, 5] * len(seeds))
    for job in jobs:
        if job.translator is not None:
            train, validation = label_ids(job)
            before, same_validation = label_ids(job.translator)
            assert train[: len(before)] == before
            assert len(set(train)) == len(train)
            assert validation == same_validation
            assert not set(train) & set(validation)
            assert job.config.translator.steps == 2


def test_the_table_has_a_row_for_every_method_strategy_seed_and_number_of_labels(
    outcome: Outcome, seeds: tuple[int, ...]
) -> None:
    rows = [each for each in read_table(outcome.directory) if each.images_of == "test"]
    for method in METHODS[len(seeds)]:
        for strategy in ("random", "entropy"):
            found = [(each.seed, each.labels_train) for each in rows if each.method == f"{method}, {strategy}"]
            assert found == [(seed, labels) for seed in seeds for labels in (3, 5)]
    first = [each for each in rows if each.labels_train == 3 and each.seed == 0]
    shared = [each.miou for each in first if each.method.startswith("guided")]
    assert shared[0] == shared[1]
    hours = [each.device_hours for each in rows if each.method == "guided, entropy" and each.seed == 0]
    assert hours == sorted(hours), "a round costs what the ones before it did, too"


def test_what_the_strategies_save_is_said_and_what_they_chose_is_drawn(
    outcome: Outcome, seeds: tuple[int, ...]
) -> None:
    for finding, method in zip(outcome.findings, METHODS[len(seeds)], strict=True):
        assert finding.startswith(f"{method}, entropy: ") and "random's" in finding
    assert outcome.pictures is not None
    with Image.open(outcome.pictures) as picture:
        assert picture.width > 8 * 64


def test_run_again_it_trains_nothing_and_says_the_same(outcome: Outcome) -> None:
    runs = outcome.directory.parent
    stages = {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")}
    again = tune(str(runs.parent / "replay.yaml"), runs=runs)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")} == stages
    assert again.findings == outcome.findings


def test_labels_are_read_between_the_points_of_a_curve() -> None:
    curve = {8: 20.0, 16: 24.0, 32: 23.0, 64: 30.0}
    assert labels_for(curve, 19.0) == 8
    assert labels_for(curve, 22.0) == pytest.approx(8 * 2**0.5)
    assert labels_for(curve, 26.5) == pytest.approx(32 * 2**0.5)
    assert labels_for(curve, 31.0) is None


def test_a_saving_is_that_of_the_mean_curve_with_every_seed_beside_it() -> None:
    random = {0: {8: 10.0, 16: 20.0}, 1: {8: 10.0, 16: 22.0}}
    better = {0: {8: 10.0, 16: 30.0}, 1: {8: 10.0, 16: 20.0}}
    saved = format_saving(better, random)
    assert saved == "reaches random's 21.0 % with 13 of 16 labels (by seed 11, more than 16)"
    assert format_saving(random, better) == "does not reach random's 25.0 % with 16 labels (by seed more than 16, 14)"


def test_the_findings_say_what_more_labels_bring_where_the_curve_is_long_enough() -> None:
    settings = ReplayConfig(strategies=("random", "ripu"), budgets=(8, 16, 32))
    rows = [
        row(f"guided, {name}", labels, seed, 10 * log2(labels) + seed, split)
        for split in ("synthetic test", "test")
        for name in settings.strategies
        for labels in settings.budgets
        for seed in (0, 1)
    ]
    findings = sum_up(settings, ["guided"], rows)
    assert [finding.split(": ")[0] for finding in findings] == ["guided, random", "guided, ripu", "guided, ripu"]
    assert findings[1].endswith("reaches random's 50.5 % with 32 of 32 labels (by seed 32, 32)")
    assert "more labels for +2 points, 80% interval" in findings[0]


def test_the_area_under_a_curve_is_its_mean_over_the_logarithm_of_the_labels() -> None:
    assert area({7: 20.0, 14: 30.0, 28: 30.0}) == pytest.approx((25 + 30) / 2)
    assert area({7: 20.0, 28: 30.0}) == 25
    random = {0: {8: 10.0, 16: 20.0}, 1: {8: 10.0, 16: 22.0}}
    better = {0: {8: 10.0, 16: 24.0}, 1: {8: 10.0, 16: 24.0}}
    assert format_area(better, random) == "+1.5 ± 0.7 points over log2 labels (paired, 2 seeds)"
    assert format_area({0: better[0]}, {0: random[0]}) == "+2.0 points over log2 labels (paired, 1 seed)"
    assert format_area({0: {8: 9.98}}, {0: {8: 10.0}}).startswith("+0.0 points"), "a difference that rounds to nothing"


def test_clicks_are_a_share_of_what_random_choice_takes() -> None:
    random = {0: {100: 10.0, 200: 20.0}, 1: {100: 10.0, 200: 30.0}}
    cheaper = {0: {50: 10.0, 100: 20.0}, 1: {50: 10.0, 100: 20.0}}
    assert format_clicks(cheaper, random) == "0.50, more than 0.50 of random's clicks"


def test_a_table_without_clicks_says_nothing_of_them() -> None:
    settings = ReplayConfig(strategies=("random", "stride"), budgets=(8, 16))
    rows = [row(f"guided, {name}", labels, 0, labels, "test") for name in settings.strategies for labels in (8, 16)]
    (old,) = sum_up(settings, ["guided"], rows)
    assert "clicks" not in old
    priced = [each.model_copy(update={"clicks": 10 * each.labels_train}) for each in rows]
    (found,) = sum_up(settings, ["guided"], priced)
    assert found.startswith("guided, stride: +0.0 points over log2 labels (paired, 1 seed); 1.00 of random's clicks; ")


def train_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        train_here(job)


def test_a_committee_has_its_student_before_it_chooses(trained: dict[str, Job]) -> None:
    expert = trained["expert"]
    settings = ReplayConfig(strategies=("committee",), budgets=(3, 5), window=1)
    config = override(trained["translator"].config, {"labels.validation": 1, "labels.budget": 3, "seed": 7})
    students = set(expert.directory.parent.glob("joint-training-*/stage.json"))
    jobs = replay(settings, [7], ["guided", "fine-tuned"], config, expert, train_all)
    train_all([job for _, job in jobs])
    rows = [row for name, job in jobs for row in evaluate_job(name, job) if row.split == "test"]
    assert {(row.method, row.labels_train) for row in rows} >= {
        ("fine-tuned, committee", 3),
        ("fine-tuned, committee", 5),
    }
    assert set(expert.directory.parent.glob("joint-training-*/stage.json")) - students


def test_what_sets_the_first_method_apart_is_not_passed_on(trained: dict[str, Job]) -> None:
    settings = ReplayConfig(strategies=("random",), budgets=(3, 5), window=1)
    config = override(trained["translator"].config, {"labels.validation": 1, "labels.budget": 3})
    methods: list[MethodName] = ["mean teacher, two views", "mean teacher"]
    jobs = dict(replay(settings, [0], methods, config, trained["expert"], lambda jobs: None))
    assert [job.config.self_training.views for job in jobs.values()] == [2, 1]
    assert len({tuple(label_ids(job)[0]) for job in jobs.values()}) == 1


def test_cells_buy_as_many_pixels_as_images_and_every_round_is_trained_anew(trained: dict[str, Job]) -> None:
    expert = trained["expert"]
    settings = ReplayConfig(strategies=("random", "stride", "random-cells"), budgets=(3, 5), window=1)
    config = override(trained["translator"].config, {"labels.validation": 1, "labels.budget": 3})

    jobs = replay(settings, [0], ["fine-tuned"], config, expert, train_all)
    train_all([job for _, job in jobs])
    rows = [row for name, job in jobs for row in evaluate_job(name, job) if row.split == "test"]
    found = {(row.method, row.labels_train): row for row in rows}
    last, cells = found["fine-tuned, random", 5], found["fine-tuned, random-cells", 5]
    assert last.pixels == cells.pixels == 5 * 64 * 32
    assert last.clicks is not None
    assert cells.clicks is not None
    assert cells.clicks != last.clicks
    assert found["fine-tuned, random", 3].clicks == found["fine-tuned, random-cells", 3].clicks, "the same first labels"
    starts = [read_job(path.parent).translator for path in expert.directory.parent.glob("translator-*/stage.json")]
    assert starts == [None] * len(starts), "no round goes on from the last one's weights"
    findings = sum_up(settings, ["fine-tuned"], rows)
    assert all("of random's clicks" in finding for finding in findings)


def test_no_label_is_read_before_it_is_bought(trained: dict[str, Job], tmp_path: Path) -> None:
    """The same replay twice: the second time only the labels that the first one bought can be decoded."""
    settings = ReplayConfig(strategies=("random", "stride", "random-cells"), budgets=(3, 5), window=1)
    config = override(trained["translator"].config, {"labels.validation": 1, "labels.budget": 3})
    bought: set[str] = set()

    def only_bought(name: str, mask: np.ndarray) -> bytes:
        return every_label(name, mask) if name in bought else b"reading this label is a fault"

    def labels_of(jobs: Sequence[tuple[str, Job]]) -> list[tuple[list[str], list[str]]]:
        return [label_ids(job) for _, job in jobs]

    def train(jobs: Sequence[Job]) -> None:
        for job in jobs:
            train_here(job)

    whole = override(config, {"data.real": write_set(tmp_path / "whole", "street", REAL_NAMES)})
    first = labels_of(replay(settings, [0], ["fine-tuned"], whole, trained["expert"], lambda jobs: None))
    bought |= {name for both in first for names in both for name in names}
    assert len(bought) < len(REAL_NAMES), "some labels are never bought"
    partly = override(config, {"data.real": write_set(tmp_path / "partly", "street", REAL_NAMES, only_bought)})
    jobs = replay(settings, [0], ["fine-tuned"], partly, trained["expert"], train)
    train([job for _, job in jobs])
    assert labels_of(jobs) == first
