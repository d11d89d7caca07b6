import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydelta.config import Config, load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.data.shards import read_manifest
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.deploy.model import load
from raydelta.errors import UserError
from raydelta.recipes import Kind
from raydelta.results.evaluate import evaluate
from raydelta.results.report import report
from raydelta.results.runs import find_leftovers, list_runs, resolve_run
from raydelta.results.sweep import read_sweep, read_trials
from raydelta.results.table import read_table
from raydelta.search_space import DEFAULT_METHODS, Space
from raydelta.storage.files import shown
from raydelta.training.job import make_job, record_methods
from raydelta.tuning.tune import in_waves, list_rows, seeded_experts, tune
from tests.test_search_space import write_space
from tests.tiny import TINY, TINY_ARGUMENTS


def test_an_override_of_a_searched_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cycle\.real is searched"):
        tune(write_space(tmp_path), ["cycle.real=3"], runs=tmp_path)


@pytest.mark.parametrize(
    ("methods", "seeds"),
    [
        (["guided", "oracle"], [0]),
        pytest.param([*DEFAULT_METHODS], [0, 1], marks=pytest.mark.slow, id="as by default"),
    ],
)
def test_sweep_table_and_rerun(methods: list[str], seeds: list[int], runs: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path, table={"methods": methods, "seeds": seeds})
    outcome = tune(space, TINY_ARGUMENTS, runs=runs)
    assert outcome.failed == []
    assert outcome.best["guidance.weight"] in (0.3, 0.6)
    rows = read_table(outcome.directory)
    assert [row.model_dump() for row in rows] == [row.model_dump() for row in outcome.rows]
    tested = [row for row in rows if row.images_of == "test"]
    counts = {(row.method, row.seed): (row.labels_train, row.labels_val) for row in tested}
    trained = {"unguided": 0, "oracle": 18}
    validated = {"unguided": 2, "guided": 2}
    assert counts == {("synthetic only", seed): (0, 0) for seed in seeds} | {
        (method, seed): (trained.get(method, 4), validated.get(method, 0)) for method in methods for seed in seeds
    }
    trials = json.loads((outcome.directory / "trials.json").read_text())
    assert {trial["overrides"]["guidance.weight"] for trial in trials} == {0.3, 0.6}
    assert outcome.pictures is not None
    assert (outcome.directory / "table.csv").exists()
    assert outcome.report is not None
    page = outcome.report.read_text()
    assert "What this report does not show" not in page
    assert "Gallery</h2>" in page and f"raydelta tune {space}" in page
    sweep = read_sweep(outcome.directory)
    assert sweep is not None and sweep.space.table.seeds == tuple(seeds)

    outcome.report.unlink()
    outcome.report.mkdir()  # a page that cannot be written costs nothing but itself
    stages = {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")}
    with pytest.warns(UserWarning, match="no report, the results are whole; try raydelta report"):
        again = tune(space, TINY_ARGUMENTS, runs=runs)
    assert again.report is None
    assert again.rows == outcome.rows
    assert all(len(trial.curve) > 1 for trial in read_trials(again.directory)), "of the run that trained them"
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")} == stages


def test_a_failed_trial_is_named_and_the_sweep_goes_on(runs: Path, tmp_path: Path) -> None:
    search = {"labels.budget": {"grid": [4, 500]}, "translator.start": {"grid": [None, "translator-gone"]}}
    space = write_space(tmp_path, search=search, table={"methods": ["guided"]}, scheduler="asha")
    arguments = [argument for argument in TINY_ARGUMENTS if "labels.budget" not in argument]
    with pytest.warns(UserWarning, match="500 labels are more than the 18 that validation leaves: left out"):
        outcome = tune(space, arguments, runs=runs)
    assert outcome.best == {"labels.budget": 4, "translator.start": None}
    (failed,) = outcome.failed
    assert "translator.start" in failed and "translator-gone" in failed.partition("}: ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("budgets", "seeds"), [([4], [0]), ([2, 4], [0, 1])])
def test_a_table_without_a_sweep_trains_parents_first_and_repeats_nothing(
    budgets: list[int], seeds: list[int], runs: Path, tmp_path: Path
) -> None:
    """Siblings: a sweep with its table, and every job comes after what it builds on."""
    methods = ["translated only", "ensemble", "joint training", "student", "pseudo-labels"]
    methods += ["oracle", "guided, shuffled labels"]
    table = {"methods": methods, "budgets": budgets, "seeds": seeds}
    space = write_space(tmp_path, search={}, table=table, config={"labels.validation": 0})
    arguments = [argument for argument in TINY_ARGUMENTS if "validation" not in argument]
    outcome = tune(space, arguments, runs=runs)
    assert (outcome.best, outcome.best_miou, outcome.failed) == (None, None, [])
    tested = {(row.method, row.seed, row.labels_train): row for row in outcome.rows if row.images_of == "test"}
    budgeted = ["ensemble", "joint training", "student", "pseudo-labels", "guided, shuffled labels"]
    assert set(tested) == {
        *(("synthetic only", seed, 0) for seed in seeds),
        *((method, seed, labels) for method in budgeted for seed in seeds for labels in budgets),
        *(("translated only", seed, 0) for seed in seeds),
        *(("oracle", seed, 20) for seed in seeds),
    }
    assert all(row.labels_val == 0 for row in outcome.rows)
    hours = {method: row.device_hours for (method, seed, labels), row in tested.items() if seed == 0 and labels != 2}
    assert hours["pseudo-labels"] > hours["student"] > hours["synthetic only"] > 0
    assert hours["joint training"] > hours["synthetic only"]
    assert hours["ensemble"] == pytest.approx(hours["student"]), "both need the translator and the student"
    made = {path.parent.name for path in runs.glob("*/stage.json")}
    again = tune(space, arguments, runs=runs)
    assert again.rows == outcome.rows
    assert {path.parent.name for path in runs.glob("*/stage.json")} == made


@pytest.mark.parametrize(
    "methods",
    [
        ["guided", "joint training", "mean teacher"],
        pytest.param(
            ["unguided", "guided", "joint training", "FDA", "student", "pseudo-labels", "mean teacher", "oracle"],
            marks=pytest.mark.slow,
            id="all",
        ),
    ],
)
def test_a_run_reads_no_test_image_before_everything_is_trained_and_chosen(
    methods: list[str], runs: Path, tmp_path: Path
) -> None:
    """The test shard of the photographs cannot be read: only the evaluation at the end may notice."""
    real = Path(prepare_data(load_config("laptop", overrides=TINY), runs).data.real)
    shards = list(real.glob("test-*.parquet"))
    assert shards
    for shard in shards:
        shard.write_bytes(b"nobody may read this before the end")
    with pytest.raises(Exception, match=r"test-00000\.parquet"):
        tune(write_space(tmp_path, table={"methods": methods, "seeds": [0]}), TINY_ARGUMENTS, runs=runs)
    (directory,) = runs.glob("tune-*")
    assert (directory / "trials.json").exists(), "the best trial was chosen"
    assert not (directory / "table.json").exists()
    kinds = sorted(json.loads(stage.read_text())["kind"] for stage in runs.glob("*/stage.json"))
    expected = ["expert", "translator", "translator"]  # two trials, the better one is guided
    expected += ["translator"] * ("unguided" in methods)
    assert kinds == sorted([*expected, *(name for name in methods if name not in ("unguided", "guided"))])


@pytest.fixture
def opened(ray_session: None, tmp_path: Path) -> Config:
    """A config whose data sets lie on disk."""
    config = load_config(overrides=TINY)
    for name in ("synthetic", "real"):
        simulate_dataset("synthetic", tmp_path / name, counts={"train": 4}, width=64, height=32)
        config = override(config, {f"data.{name}": str(tmp_path / name)})
    return config


@pytest.mark.parametrize(("own", "replayed", "experts"), [(False, False, 2), (True, False, 1), (False, True, 1)])
def test_every_seed_has_an_expert_unless_it_is_the_users_or_labels_are_bought(
    own: bool, replayed: bool, experts: int, opened: Config, tmp_path: Path
) -> None:
    tree: dict[str, Any] = {"table": {"methods": ["guided"], "seeds": [0, 1]}}
    if replayed:
        tree["replay"] = {"budgets": [2, 4]}
    if own:
        (tmp_path / "theirs.pt2").write_bytes(b"a network of theirs")
        opened = override(opened, {"expert.model": str(tmp_path / "theirs.pt2")})
    first = make_job("expert", opened, tmp_path)
    searched = override(opened, {"augment.crop": 0.9})
    found = seeded_experts(Space(**tree), searched, first)
    assert list(found) == [0, 1] and found[0].directory == first.directory
    assert len({job.directory for job in found.values()}) == experts
    rows = list_rows(Space(**tree), searched, found)
    assert {job.expert for _, job in rows if job.kind != "expert"} == {job.directory for job in found.values()}
    record_methods(tmp_path, searched, first.directory)
    named = json.loads((tmp_path / "methods.json").read_text())
    assert {named[method]["stage"] for method in ("synthetic only", "guided")} == {
        job.directory.name for _, job in rows if job.config.seed == 0
    }


def test_every_job_comes_after_what_it_builds_on(opened: Config, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("pseudo-labels", "oracle", "ensemble")
    jobs = [make_job(kind, opened, tmp_path, tmp_path / "expert-1") for kind in kinds]
    waves = [[job.kind for job in wave] for wave in in_waves(jobs)]
    assert waves == [["translator", "oracle"], ["student"], ["pseudo-labels"]]


@pytest.mark.slow
def test_trials_of_two_workers_on_a_machine_of_two_cpus(runs: Path, tmp_path: Path) -> None:
    """Whatever the driver of a trial reserves, its workers need every CPU. Sibling: trials that share one copy of the
    sets, in test_trials.py."""
    search = {"guidance.weight": {"choice": [0.3]}}
    several = {"resources": {"workers": 2}}
    space = write_space(tmp_path, search=search, table={"methods": ["guided"]}, **several)
    outcome = tune(space, TINY_ARGUMENTS, runs=runs)
    assert outcome.failed == []
    assert len(list(runs.glob("translator-*/stage.json"))) == 1


def test_a_search_with_a_teacher_is_refused_before_anything_is_made(ray_session: None, tmp_path: Path) -> None:
    """No trial would train it first."""
    searched = write_space(tmp_path, search={"guidance.teacher": {"choice": ["mean teacher"]}})
    (tmp_path / "other").mkdir()
    for space, more in ((searched, []), (write_space(tmp_path / "other"), ["guidance.teacher=mean teacher"])):
        with pytest.raises(UserError, match=r"guidance\.teacher: no trial trains a teacher first"):
            tune(space, [*TINY_ARGUMENTS, *more], runs=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))


def test_photographs_without_labels_cannot_be_swept(ray_session: None, tmp_path: Path) -> None:
    from PIL import Image

    photographs = tmp_path / "photographs"
    for split in ("train", "test"):
        (photographs / "images" / split).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (64, 32), (index, 90, 90)).save(photographs / "images" / split / f"drive_{index}.png")
    with pytest.raises(UserError, match="a sweep needs labelled photographs"):
        tune(write_space(tmp_path), [*TINY_ARGUMENTS, f"data.real={photographs}"], runs=tmp_path / "runs")


def test_a_sweep_in_a_bucket(
    ray_session: None, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on one machine, read on another; the same command again repeats nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    space = write_space(tmp_path, search={"guidance.weight": {"grid": [0.4]}}, table={"methods": ["guided"]})
    address = f"{s3}/swept/runs"
    outcome = tune(space, TINY_ARGUMENTS, runs=address)
    assert outcome.failed == [] and outcome.report is not None and outcome.pictures is not None
    name = outcome.directory.name
    assert shown(outcome.directory) == f"{address}/{name}"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    (sweep,) = [run for run in list_runs(address) if run.part_of is None]
    assert (sweep.name, sweep.state) == (name, "finished")
    assert {run.state for run in list_runs(address)} == {"finished"}
    found = resolve_run("latest", address)
    assert found == resolve_run(f"{address}/{name}") == resolve_run(name.removeprefix("tune-"), address)
    assert read_table(found) == outcome.rows
    assert all(len(trial.curve) > 1 for trial in read_trials(found))
    assert read_manifest(f"{address}/data/{Path(read_sweep(found).config.data.real).name}").splits["test"].rows == 8
    for file in ("strips.png", "report.html", "best.yaml", "table.csv"):
        assert (found / file).exists(), file
    photograph = np.zeros((32, 64, 3), np.uint8)
    for run in (f"{address}/{name}", f"{address}/{name}/best", found):
        assert load(run)(photograph).ids.shape == (32, 64)
    assert [row.miou for row in evaluate(f"{address}/{read_trials(found)[0].stage}")]
    page = report(f"{address}/{name}")
    assert f"raydelta report {address}/{name}" in page.read_text()
    assert not [machine for machine in ("one", "two") if f"{tmp_path / machine}/" in page.read_text()]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    capsys.readouterr()
    again = tune(space, TINY_ARGUMENTS, runs=address, resume=True)
    assert again.rows == outcome.rows
    assert find_leftovers(address) == []
