"""What a run tells trackers: TensorBoard's event files always, MLflow and Weights & Biases where the config names them.

Everything here happens in the driver, which hears of every training anyway: no worker needs a key or a way to a server.
Each tracker has a thread of its own, so that no training waits for one or dies of one: what it cannot be told now is
tried again for a while, with one warning. Nothing opens a connection unless ``tracking.*`` says where to.
"""

import importlib.util
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from raydelta.config import TrackingConfig
from raydelta.errors import UserError
from raydelta.results.row import Row
from raydelta.results.table import summarise
from raydelta.storage.bucket import publish
from raydelta.storage.files import fingerprint, without_secrets

FOLDER = "tensorboard"
"""Below the run directory: ``tensorboard --logdir runs/tensorboard`` shows all."""

RETRIED = 300.0  # seconds for which a tracker that is down is told the same thing again
PAUSE = 5.0  # seconds between two attempts
FLUSH = 5.0  # seconds after which TensorBoard sees a figure
FAREWELL = 30.0  # seconds that the end of a command waits for a tracker

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # to MLflow's makers, not to the server that is named
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves, and longer
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""The trackers' own knobs; what the user has set stays."""


@dataclass(frozen=True)
class Run:
    """A sweep, or one training; under a sweep, its child."""

    name: str  # of the directory that it becomes: the same training is the same run, whenever it goes on
    kind: str
    settings: Mapping[str, Any]  # dotted config fields
    parent: str | None = None


class Tracker(Protocol):
    """Where runs are told to. Every method may fail, and is called from one thread."""

    def start(self, run: Run) -> None: ...
    def log(self, name: str, figures: Mapping[str, float], step: int) -> None: ...
    def show(self, name: str, picture: Path | None, rows: Sequence[Row], files: Sequence[Path]) -> None: ...
    def end(self, name: str, ok: bool) -> None: ...


def check_trackers(tracking: TrackingConfig) -> None:
    """
    Raises:
        UserError: a tracker is named whose package is not installed.
    """
    for name in type(tracking).model_fields:
        if getattr(tracking, name) is not None and importlib.util.find_spec(name) is None:
            raise UserError(
                f"tracking.{name} is set, but {name} is not installed: pip install 'raydelta[{name}]', or unset it"
            )


@contextmanager
def open_trackers(tracking: TrackingConfig, runs: Path) -> Iterator[None]:
    """What is started, logged, shown and ended within goes to TensorBoard's files in ``runs``, and where configured.

    Within another one it does nothing: the outermost decides. Runs that are not ended when it ends have failed.

    Raises:
        UserError: a tracker is named whose package is not installed.
    """
    if _open:
        yield
        return
    check_trackers(tracking)
    for variable, value in SETTINGS.items():
        os.environ.setdefault(variable, value)
    runs = runs.resolve()
    _open.append(_Teller("TensorBoard", lambda: _TensorBoard(runs / FOLDER)))
    if (uri := tracking.mlflow) is not None:
        _open.append(_Teller(f"tracking.mlflow {without_secrets(uri)}", lambda: _MLflow(uri)))
    if (project := tracking.wandb) is not None:
        _open.append(_Teller(f"tracking.wandb {project}", lambda: _WandB(project, runs)))
    try:
        yield
    finally:
        for name in reversed(list(_running)):
            end(name, ok=False)
        deadline = time.monotonic() + FAREWELL
        for teller in _open:
            teller.finish()
        for teller in _open:
            teller.wait(deadline)
        publish(runs / FOLDER)
        _open.clear()
        _ended.clear()


def start(run: Run) -> None:
    """A run begins, or goes on; one that has ended well does not (a sweep's best trial is a row of its table too)."""
    if run.name in _ended:
        return
    _running[run.name] = None
    _tell(lambda tracker: tracker.start(run))


def log(name: str, metrics: Mapping[str, Any]) -> None:
    """The numbers of a training's report at its ``step``; what Tune adds about the machine is left out."""
    if name not in _running:
        return
    figures = {
        key: float(value)
        for key, value in (metrics | metrics.get("losses", {})).items()
        if isinstance(value, Real) and not isinstance(value, bool) and key not in _NOT_FIGURES
    }
    step = int(metrics.get("step", 0))
    _tell(lambda tracker: tracker.log(name, figures, step))


def show(name: str, picture: Path | None, rows: Sequence[Row] = (), files: Sequence[Path] = ()) -> None:
    """The picture, the table and the files that a run ends with, or has ended with; what does not exist is left out."""
    if name not in _running and name not in _ended:
        return
    picture = picture if picture is not None and picture.exists() else None
    files = [file for file in files if file.exists()]
    _tell(lambda tracker: tracker.show(name, picture, rows, files))


def end(name: str, ok: bool) -> None:
    """A run is over."""
    if name not in _running:
        return
    del _running[name]
    if ok:
        _ended.add(name)
    _tell(lambda tracker: tracker.end(name, ok))


_open: list["_Teller"] = []
_running: dict[str, None] = {}
_ended: set[str] = set()

_NOT_FIGURES = {
    *("step", "steps", "training_iteration", "timestamp", "pid", "time_this_iter_s", "time_total_s"),
    *("time_since_restore", "iterations_since_restore"),
}


def _tell(call: Callable[[Tracker], None]) -> None:
    for teller in _open:
        teller.tell(call)


class _Teller:
    """The thread of a tracker, and what it has still to be told."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._finishing = threading.Event()
        self._tracker: Tracker | None = None
        self._down_since: float | None = None
        self._warned = False
        self._lost = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)  # one that hangs holds no exit
        self._thread.start()

    def tell(self, call: Callable[[Tracker], None]) -> None:
        """Returns at once."""
        self._calls.put(call)

    def finish(self) -> None:
        """Nothing more will come, and nothing is tried again from now on."""
        self._finishing.set()
        self._calls.put(None)

    def wait(self, deadline: float) -> None:
        """Until all is told, or the deadline."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() or self._lost:
            warnings.warn(f"{self.name}: has not been told everything", stacklevel=3)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            while not self._try(call):
                self._finishing.wait(PAUSE)

    def _try(self, call: Callable[[Tracker], None]) -> bool:
        """Whether to go on with the next: it was told, or is given up."""
        try:
            self._tracker = self._tracker or self._make()
            call(self._tracker)
            self._down_since = None
            return True
        except Exception as error:  # a tracker may raise anything, and none of it is worth a training
            now = time.monotonic()
            self._down_since = self._down_since or now
            if not self._warned:
                self._warned = True
                reason = " ".join(str(error).split())[:300]
                warnings.warn(f"{self.name}: {reason}; trying again, the training goes on without it", stacklevel=2)
            given_up = self._finishing.is_set() or now - self._down_since > RETRIED
            self._lost += given_up
            return given_up


def table_figures(rows: Sequence[Row]) -> dict[str, float]:
    """mIoU of every line of the table, means over the seeds, under names that every tracker allows."""
    return {
        re.sub(r"[^\w/]+", "_", f"miou/{part.images_of}/{part.method}/{part.labels_train}_labels"): part.miou
        for part in summarise(rows)
    }


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text: a line of titles, then one for each method, split and budget."""
    titles = ["method", "split", "labels", "validation labels", "mIoU %", "device-hours"]
    lines = [titles]
    for part in summarise(rows):
        key = part.method, part.images_of, part.labels_train, part.labels_val
        lines.append([*map(str, key), part.shown, f"{part.device_hours:.2f}"])
    return lines


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "| --- " * len(lines[0]) + "|", *body])


class _TensorBoard:
    """Event files, one folder a run, those of a sweep below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: dict[str, Run] = {}
        self._writers: dict[str, Any] = {}
        self._opened = 0

    def start(self, run: Run) -> None:
        if run.name not in self._runs:
            self._runs[run.name] = run
            settings = [["field", "value"], *([key, str(value)] for key, value in run.settings.items())]
            self._writer(run.name).add_text("settings", _markdown(settings))

    def _writer(self, name: str) -> Any:
        from tensorboardX import SummaryWriter

        if name not in self._writers:
            self._opened += 1
            folder = self._folder / (self._runs[name].parent or "") / name
            # A file is named after the second, and would be overwritten by another one of the same.
            suffix = f".{os.getpid()}.{self._opened}"
            self._writers[name] = SummaryWriter(str(folder), filename_suffix=suffix, flush_secs=FLUSH)
        return self._writers[name]

    def log(self, name: str, figures: Mapping[str, float], step: int) -> None:
        for key, value in figures.items():
            self._writer(name).add_scalar(key, value, step)

    def show(self, name: str, picture: Path | None, rows: Sequence[Row], files: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        over = name not in self._writers
        writer = self._writer(name)
        if picture is not None:
            writer.add_image("strips", np.asarray(Image.open(picture).convert("RGB")), dataformats="HWC")
        if rows:
            writer.add_text("table", _markdown(_lines(rows)))
        if over:
            self.end(name, ok=True)

    def end(self, name: str, ok: bool) -> None:
        self._writers.pop(name).close()  # a picture that comes later opens another


class _MLflow:
    """A tracking server, or a database (``sqlite:///mlflow.db``). Credentials are MLflow's own variables."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "raydelta")
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._ids: dict[str, str] = {}

    def start(self, run: Run) -> None:
        from mlflow.entities import Param

        if run.name in self._ids:
            return
        tags = {"raydelta.run": run.name, "raydelta.kind": run.kind, "raydelta.parent": run.parent or ""}
        conditions = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in ("raydelta.run", "raydelta.parent"))
        found = self._client.search_runs([self._experiment], conditions, max_results=1)
        if found:
            self._ids[run.name] = found[0].info.run_id
            self._client.update_run(self._ids[run.name], status="RUNNING")
            return
        if run.parent is not None:
            tags["mlflow.parentRunId"] = self._ids[run.parent]
        made = self._client.create_run(self._experiment, tags=tags, run_name=run.name)
        params = [Param(key, str(value)[:500]) for key, value in run.settings.items()]
        for first in range(0, len(params), 100):  # MLflow takes no more at once
            self._client.log_batch(made.info.run_id, params=params[first : first + 100])
        self._ids[run.name] = made.info.run_id

    def log(self, name: str, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._ids[name], [Metric(key, value, now, step) for key, value in figures.items()])

    def show(self, name: str, picture: Path | None, rows: Sequence[Row], files: Sequence[Path]) -> None:
        for path in ([picture] if picture is not None else []) + list(files):
            self._client.log_artifact(self._ids[name], str(path))

    def end(self, name: str, ok: bool) -> None:
        self._client.set_terminated(self._ids[name], "FINISHED" if ok else "FAILED")


class _WandB:
    """Weights & Biases; a sweep and its trainings are one group. Logged in by ``wandb login`` or ``WANDB_API_KEY``."""

    def __init__(self, project: str, runs: Path) -> None:
        entity, _, self._project = project.rpartition("/")
        self._entity, self._runs = entity or None, runs
        self._started: dict[str, Any] = {}
        self._parents: dict[str, str | None] = {}

    def start(self, run: Run) -> None:
        import wandb

        if run.name in self._started:
            return
        self._runs.mkdir(parents=True, exist_ok=True)
        self._parents[run.name] = run.parent
        started = self._started[run.name] = wandb.init(
            entity=self._entity,
            project=self._project,
            id=fingerprint([run.parent, run.name]),
            name=run.name,
            group=run.parent or run.name,
            job_type=run.kind,
            config=dict(run.settings),
            dir=str(self._runs),
            resume="allow",
            reinit="create_new",  # several at once
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                finish_timeout=FAREWELL,
                init_timeout=20,
                login_timeout=5,  # nobody answers its question there
                save_code=False,
                silent=True,
            ),
        )
        started.define_metric("*", step_metric="step")  # its own steps may not go back, as they do after a kill

    def log(self, name: str, figures: Mapping[str, float], step: int) -> None:
        self._started[name].log({"step": step, **figures})

    def show(self, name: str, picture: Path | None, rows: Sequence[Row], files: Sequence[Path]) -> None:
        import wandb

        shown: dict[str, Any] = {}
        over = name not in self._started  # a run that is over takes no picture: its sweep shows it
        if picture is not None:
            shown[f"strips/{name}" if over else "strips"] = wandb.Image(str(picture))
        if rows:
            titles, *lines = _lines(rows)
            shown["table"] = wandb.Table(columns=titles, data=lines)
        self._started[self._parents[name] or name if over else name].log(shown)

    def end(self, name: str, ok: bool) -> None:
        self._started[name].finish(exit_code=0 if ok else 1)
        del self._started[name]
