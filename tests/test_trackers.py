import threading
import warnings
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raydelta import trackers
from raydelta.cluster import SETTINGS
from raydelta.config import TrackingConfig, load_config
from raydelta.errors import UserError
from raydelta.trackers import Run, open_trackers
from raydelta.tuning import Outcome, run_tune
from tests.test_evaluation import row
from tests.tiny import TINY


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.fixture(scope="module")
def outcome(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A sweep of two trials that is told to MLflow."""
    folder = tmp_path_factory.mktemp("tracked")
    space = {"search": {"guidance.weight": {"grid": [0.2, 0.6]}}, "trials": 1, "scheduler": "none"}
    (folder / "two.yaml").write_text(yaml.safe_dump(space | {"config": TINY, "table": {"methods": ["guided"]}}))
    address = f"tracking.mlflow=sqlite:///{folder}/mlflow.db"
    return run_tune(str(folder / "two.yaml"), [address], runs=folder / "runs")


def test_a_sweep_is_a_run_with_its_trials_nested_in_mlflow(outcome: Outcome) -> None:
    from mlflow import MlflowClient

    folder = outcome.directory.parents[1]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'raydelta'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    sweep = runs[outcome.directory.name]
    trials = [run for name, run in runs.items() if name.startswith("translator-")]
    assert [run.data.tags["mlflow.parentRunId"] for run in trials] == [sweep.info.run_id] * 2
    assert {run.data.params["guidance.weight"] for run in trials} == {"0.2", "0.6"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    for run in trials:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "miou")]
        assert steps == [2, 4, 6]
        assert any(file.path.endswith(".png") for file in client.list_artifacts(run.info.run_id))
    assert {"table.csv", "strips.png", "best.yaml"} <= {file.path for file in client.list_artifacts(sweep.info.run_id)}
    assert sweep.data.metrics["miou"] == pytest.approx(outcome.best_miou)


def test_tensorboard_has_the_same_below_the_runs(outcome: Outcome) -> None:
    sweep = outcome.directory.parent / trackers.FOLDER / outcome.directory.name
    trials = list(sweep.glob("translator-*"))
    assert len(trials) == 2
    for trial in trials:
        events = read(trial)
        assert [event.step for event in events.Scalars("miou")] == [2, 4, 6]
        assert "strips" in events.Tags()["images"]
    assert "strips" in read(sweep).Tags()["images"]


def test_what_is_written_down_names_no_tracker(outcome: Outcome) -> None:
    """Whoever gets the file may not report to its author, and the same training has the same name, told or not."""
    tree = yaml.safe_load(outcome.config.read_text())
    assert tree["tracking"] == {"mlflow": None, "wandb": None}
    for config in outcome.directory.parent.glob("*/checkpoint/config.yaml"):
        assert "mlflow.db" not in config.read_text()


def test_nothing_is_told_to_anyone_unless_configured(tmp_path: Path) -> None:
    assert load_config().tracking == TrackingConfig(mlflow=None, wandb=None)
    assert SETTINGS["RAY_USAGE_STATS_ENABLED"] == "0"
    with open_trackers(TrackingConfig(), tmp_path):
        assert [thread.name for thread in threading.enumerate() if "tracking" in thread.name] == []
        assert [teller.name for teller in trackers._open] == ["TensorBoard"]


def test_a_tracker_that_is_down_costs_one_warning_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "PAUSE", 0.1)
    with (
        warnings.catch_warnings(record=True) as caught,
        open_trackers(TrackingConfig(mlflow="http://127.0.0.1:1"), tmp_path),
    ):
        warnings.simplefilter("always")
        trackers.start(Run("translator-1", "translator", {}))
        for step in (1, 2):
            trackers.log("translator-1", {"step": step, "miou": 10.0 * step})
        trackers.end("translator-1", ok=True)
    messages = [str(warning.message) for warning in caught if "tracking.mlflow" in str(warning.message)]
    assert sum("trying again" in message for message in messages) == 1
    assert any("has not been told everything" in message for message in messages)
    assert [event.value for event in read(tmp_path / trackers.FOLDER / "translator-1").Scalars("miou")] == [10, 20]


def test_a_picture_and_a_table_are_shown(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "strips.png")
    with open_trackers(TrackingConfig(), tmp_path):
        trackers.start(Run("tune-1", "sweep", {"seed": 0}))
        trackers.show("tune-1", tmp_path / "strips.png", [row(miou=30.0)], [tmp_path / "missing.csv"])
        trackers.end("tune-1", ok=True)
    tags = read(tmp_path / trackers.FOLDER / "tune-1").Tags()
    assert tags["images"] == ["strips"]
    assert any(name.startswith("table") for name in tags["tensors"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"tracking.wandb is set, but wandb is not installed: pip install 'raydelta\[wandb\]'"
    ):
        trackers.check_trackers(TrackingConfig(wandb="street"))


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(UserError, match=r"tracking\.mlflow: the address on host holds a password"):
        load_config(overrides=["tracking.mlflow=https://me:hunter2@host/mlflow"])
