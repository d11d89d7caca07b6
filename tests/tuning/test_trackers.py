import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import ray
from PIL import Image

import raydelta
from raydelta.compute.cluster import SETTINGS
from raydelta.config import TrackingConfig, load_config, without_tracking
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.errors import UserError
from raydelta.results.row import Row
from raydelta.training.job import make_job
from raydelta.tuning import trackers
from raydelta.tuning.single import train_expert
from raydelta.tuning.trackers import Run, end, log, open_trackers, show, start
from raydelta.tuning.tune import tune
from tests.test_search_space import write_space
from tests.tiny import TINY, TINY_ARGUMENTS

KEY = "0123456789abcdef" * 2 + "01234567"  # of the form of a key of Weights & Biases


def row(method: str, miou: float, seed: int = 0) -> Row:
    counts = {"labels_train": 4, "labels_val": 2, "images": 8}
    names = {"real": "street", "split": "test", "start": "expert", "pretraining": None}
    return Row(method=method, seed=seed, device_hours=0.1, miou=miou, per_class={"road": miou}, **counts, **names)  # type: ignore[arg-type]


def tell_a_sweep(picture: Path) -> None:
    """What a sweep of one trial tells."""
    Image.new("RGB", (12, 8), (200, 10, 10)).save(picture)
    start(Run("tune-1", "tune", {"seed": 0}))
    start(Run("translator-1", "translator", {"guidance.weight": 0.3}, parent="tune-1"))
    for step in (2, 4):
        told = {"step": step, "steps": 4, "losses": {"guidance": 1 / step}, "miou": step / 2}
        log("translator-1", told | {"hostname": "here", "pid": 7, "done": True})
    end("translator-1", ok=True)
    show("translator-1", picture)
    log("tune-1", trackers.table_figures([row("ensemble, untranslated", 30.0), row("ensemble, untranslated", 32.0, 1)]))
    show("tune-1", picture, [row("guided", 31.5)], [picture.with_name("missing.csv")])
    end("tune-1", ok=True)


def read_events(folder: Path) -> "dict[str, list[tuple[int, float]]]":
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    found = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in tags["scalars"]}
    found |= {name: [] for name in tags["images"]}
    texts = [name.removesuffix("/text_summary") for name in tags["tensors"]]
    return found | {name: [] for name in texts}


def test_event_files_are_always_written_a_folder_for_each_run(tmp_path: Path) -> None:
    with open_trackers(TrackingConfig(), tmp_path):
        tell_a_sweep(tmp_path / "strips.png")
    trial = read_events(tmp_path / "tensorboard" / "tune-1" / "translator-1")
    assert trial["miou"] == [(2, 1.0), (4, 2.0)]
    assert trial["guidance"] == [(2, 0.5), (4, 0.25)]
    assert trial.keys() == {"miou", "guidance", "settings", "strips"}, "nothing of the machine"
    sweep = read_events(tmp_path / "tensorboard" / "tune-1")
    assert sweep["miou/test/ensemble_untranslated/4_labels"] == [(0, 31.0)]
    assert {"table", "strips", "settings"} <= sweep.keys()


def test_mlflow_has_trials_below_the_sweep_and_knows_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # beside a database MLflow puts its files below the working directory
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):  # a second session, as after a kill
        with open_trackers(TrackingConfig(mlflow=uri), tmp_path):
            tell_a_sweep(tmp_path / "strips.png")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("raydelta")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"tune-1", "translator-1"}
    sweep, trial = runs["tune-1"], runs["translator-1"]
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert trial.data.params == {"guidance.weight": "0.3"}
    assert trial.data.metrics == {"miou": 2.0, "guidance": 0.25}
    assert {(m.step, m.value) for m in client.get_metric_history(trial.info.run_id, "miou")} == {(2, 1.0), (4, 2.0)}
    assert [file.path for file in client.list_artifacts(trial.info.run_id)] == ["strips.png"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_wandb_writes_offline_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", KEY)
    with open_trackers(TrackingConfig(wandb="team/demo"), tmp_path / "runs"):
        tell_a_sweep(tmp_path / "strips.png")
    folders = list((tmp_path / "runs" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len(list((tmp_path / "runs").glob("wandb/*/files/media/images/strips*/*.png"))) == 1
    written = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert any(b"guidance.weight" in content for path, content in written.items() if path.suffix == ".wandb")
    assert not [path for path, content in written.items() if KEY.encode() in content]


def test_a_server_that_is_down_costs_a_warning_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "PAUSE", 0.1)
    monkeypatch.setattr(trackers, "FAREWELL", 12.0)
    tracking = TrackingConfig(mlflow="http://127.0.0.1:1")
    with pytest.warns(UserWarning) as warned, open_trackers(tracking, tmp_path):
        begun = time.monotonic()
        tell_a_sweep(tmp_path / "strips.png")
        assert time.monotonic() - begun < 1, "a training does not wait"
    texts = [str(warning.message) for warning in warned if "127.0.0.1:1" in str(warning.message)]
    assert len([text for text in texts if "the training goes on without it" in text]) == 1
    assert len([text for text in texts if "has not been told everything" in text]) == 1
    assert read_events(tmp_path / "tensorboard" / "tune-1" / "translator-1")["miou"], "the other trackers go on"


class Wobbly:
    """A tracker of a server that is away at first, and hears the rest."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.away = threading.Event()
        self.away.set()

    def start(self, run: Run) -> None:
        if self.away.is_set():
            raise ConnectionError("no route to host")
        self.heard.append(run.name)

    def log(self, name: str, figures: Mapping[str, float], step: int) -> None:
        self.heard.append(f"{name} {step}")

    def show(self, name: str, picture: Path | None, rows: Sequence[Row], files: Sequence[Path]) -> None: ...
    def end(self, name: str, ok: bool) -> None: ...


@pytest.mark.filterwarnings("ignore:wobbly")
def test_what_could_not_be_told_is_told_in_order_once_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "PAUSE", 0.05)
    wobbly = Wobbly()
    teller = trackers._Teller("wobbly", lambda: wobbly)
    teller.tell(lambda tracker: tracker.start(Run("a", "expert", {})))
    for step in (1, 2):
        teller.tell(lambda tracker, step=step: tracker.log("a", {}, step))
    time.sleep(0.3)
    assert wobbly.heard == []
    wobbly.away.clear()
    deadline = time.monotonic() + 10
    while len(wobbly.heard) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert wobbly.heard == ["a", "a 1", "a 2"]
    teller.finish()


def test_a_run_that_is_cut_off_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(KeyboardInterrupt), open_trackers(TrackingConfig(mlflow=uri), tmp_path):
        start(Run("expert-1", "expert", {}))
        raise KeyboardInterrupt
    client = MlflowClient(tracking_uri=uri)
    assert [run.info.status for run in client.search_runs(["1"])] == ["FAILED"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    tracking = load_config(overrides=[f"tracking.{name}=x"]).tracking
    with pytest.raises(UserError, match=rf"pip install 'raydelta\[{name}\]'"), open_trackers(tracking, tmp_path):
        pass
    with pytest.raises(UserError, match="is not installed"):
        tune(write_space(tmp_path), [*TINY_ARGUMENTS, f"tracking.{name}=x"], runs=tmp_path)


@pytest.mark.parametrize("address", ["https://me:secret@host/", "https://host/?api_key=secret"])
def test_an_address_with_a_secret_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.mlflow: the address on host holds a password or key") as error:
        load_config(overrides={"tracking.mlflow": address})
    assert "secret@" not in str(error.value)
    assert "=secret" not in str(error.value)


def test_no_training_depends_on_who_is_told(ray_session: None, tmp_path: Path) -> None:
    for name in ("synthetic", "real"):
        simulate_dataset("synthetic", tmp_path / name, counts={"train": 4}, width=64, height=32)
    data = {f"data.{name}": str(tmp_path / name) for name in ("synthetic", "real")}
    quiet = load_config(overrides=TINY | data)
    loud = load_config(overrides=TINY | data | {"tracking.mlflow": "http://server", "tracking.wandb": "p"})
    for kind in ("expert", "translator", "student", "ensemble"):
        directories = {make_job(kind, config, tmp_path, tmp_path / "expert-1").directory for config in (quiet, loud)}
        assert len(directories) == 1
    assert without_tracking(loud) == quiet


def test_a_training_is_told(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    job = train_expert(load_config(overrides=TINY | {"tracking.mlflow": uri}), tmp_path / "runs")
    (run,) = MlflowClient(tracking_uri=uri).search_runs(["1"])
    assert (run.info.run_name, run.info.status) == (job.directory.name, "FINISHED")
    assert not [path for path in (tmp_path / "runs").rglob("*.yaml") if uri in path.read_text()]


@pytest.mark.slow
def test_a_sweep_is_told_and_is_the_same_sweep_without(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    space = write_space(tmp_path, table={"methods": ["guided"]})
    outcome = tune(space, [*TINY_ARGUMENTS, f"tracking.mlflow={uri}"], runs=runs)
    told = MlflowClient(tracking_uri=uri)
    found = {run.info.run_name: run for run in told.search_runs(["1"])}
    stages = {path.parent.name for path in runs.glob("*/stage.json")}
    assert found.keys() == stages | {outcome.directory.name}
    sweep = found[outcome.directory.name]
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        if not name.startswith(("expert", "tune")):
            assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
            assert [file.path for file in told.list_artifacts(run.info.run_id)] == [f"{name}.png"]
    trials = [run for name, run in found.items() if name.startswith("translator")]
    assert {run.data.params["guidance.weight"] for run in trials} == {"0.3", "0.6"}
    assert {step for run in trials for step in [m.step for m in told.get_metric_history(run.info.run_id, "miou")]} == {
        2,
        4,
        6,
    }
    assert sweep.data.metrics["miou"] == pytest.approx(outcome.best_miou)
    assert {"table.csv", "strips.png", "report.html"} <= {file.path for file in told.list_artifacts(sweep.info.run_id)}
    assert not [path for path in runs.rglob("*.yaml") if uri in path.read_text()], "a config is told to nobody"

    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")}
    assert tune(space, TINY_ARGUMENTS, runs=runs).directory == outcome.directory
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/stage.json")} == before


GUARD = """
import os, socket, sys

def listen(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        # Ray asks the kernel for its own address by connecting a datagram socket, which sends nothing.
        asks = event == "socket.connect" and arguments[0].type == socket.SOCK_DGRAM
        if not asks and isinstance(address, tuple | str) and not str(address).startswith("/"):
            with open(os.environ["GUARD_LOG"], "a") as file:
                file.write(f"{address[0] if isinstance(address, tuple) else address}\\n")

sys.addaudithook(listen)
"""


OWN = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "None"}
METADATA = {"169.254.169.254", "metadata.google.internal"}
"""The machine's own host, which Ray asks in which cloud it is."""


def test_by_default_a_private_ray_sends_nothing_anywhere(tmp_path: Path) -> None:
    """Every Python process of a command writes down whom it looks up and connects to."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_USAGE")}
    environment |= {"PYTHONPATH": f"{tmp_path}:{Path(raydelta.__file__).parents[1]}"}
    environment |= {"GUARD_LOG": str(tmp_path / "addresses")}
    command = [sys.executable, "-m", "raydelta.cli", "data", "simulate", str(tmp_path / "set")]
    command += ["--train", "4", "--test", "0", "--width", "64", "--height", "32"]
    subprocess.run(command, check=True, env=environment, timeout=120)
    reached = set((tmp_path / "addresses").read_text().split())
    own = OWN | {socket.gethostname(), ray.util.get_node_ip_address()}
    assert reached & own, "the guard hears the connections of Ray's own processes"
    assert reached - own <= METADATA


@pytest.mark.slow
def test_by_default_nothing_is_sent_anywhere(tmp_path: Path) -> None:
    """The same for a cluster and a training on it."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    record, session = tmp_path / "addresses", Path(tempfile.mkdtemp(prefix="ray"))
    package = str(Path(raydelta.__file__).parents[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_USAGE")}
    sent = {name: value for name, value in SETTINGS.items() if name.startswith("RAY_USAGE")}  # as clusters/ export them
    environment |= {"PYTHONPATH": f"{tmp_path}:{package}", "GUARD_LOG": str(record)}
    head = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", "--port=0"]
    head += [f"--temp-dir={session}", "--dashboard-port=0"]
    with (tmp_path / "ray.log").open("w") as output:
        cluster = subprocess.Popen(head, stdout=output, stderr=output, start_new_session=True, env=environment | sent)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"--address='([^']+)'", (tmp_path / "ray.log").read_text())):
            assert cluster.poll() is None and time.monotonic() < deadline, (tmp_path / "ray.log").read_text()
            time.sleep(0.2)
        command = [sys.executable, "-m", "raydelta.cli", "train", "expert", "--runs", str(tmp_path / "runs")]
        joined = environment | {"RAY_ADDRESS": found.group(1)}
        result = subprocess.run([*command, *TINY_ARGUMENTS], capture_output=True, text=True, env=joined, timeout=300)
        assert result.returncode == 0, result.stderr
        log = session / "session_latest" / "logs" / "dashboard.log"
        while "Usage reporting is disabled" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline, "the statistics say that they are off"
            time.sleep(0.2)
    finally:
        os.killpg(cluster.pid, signal.SIGTERM)
        cluster.wait(timeout=60)
        shutil.rmtree(session, ignore_errors=True)
    reached = set(record.read_text().split())
    own = OWN | {socket.gethostname(), found.group(1).rpartition(":")[0]}
    assert reached & own, "the guard hears the connections of Ray's own processes"
    assert reached - own <= METADATA
