"""What the driver does beside a sweep: the line of progress, gauges, and what trackers are told.

Tune keeps its callbacks as pickles beside the sweep and takes them from there when it goes on, so they hold nothing
that is open.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raydelta.compute.gauges import record_trials
from raydelta.config import Config
from raydelta.parsing import flatten
from raydelta.progress import Progress
from raydelta.results.gallery import draw_trainings
from raydelta.results.row import Row
from raydelta.storage.files import Away
from raydelta.training.job import Job
from raydelta.training.run import prune
from raydelta.tuning import trackers


def show_progress(progress: Progress, trials: int, steps: int, total: int | None, sweep: str) -> Any:
    """A callback that shows one line for all trials of so many steps each, and sets the gauges of the sweep.

    Args:
        total: steps of all trials, if it is known how many of them end early; else one that does counts as a whole one.
    """
    from ray import tune

    class ShowProgress(tune.Callback):
        """Adds up the steps of all trials."""

        def __init__(self) -> None:
            self.steps: dict[str, int] = {}
            self.ended: set[str] = set()
            self.best = 0.0

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            self.steps[trial.trial_id] = max(self.steps.get(trial.trial_id, 0), result.get("step", 0))
            self.best = max(self.best, result.get("miou", 0.0))
            self._show()

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.ended.add(trial.trial_id)
            if total is None:
                self.steps[trial.trial_id] = steps
            self._show()

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.on_trial_complete(iteration, trials, trial)

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            record_trials(sweep, [trial.status for trial in trials])

        def on_experiment_end(self, trials: Any, **info: Any) -> None:
            record_trials(sweep, [trial.status for trial in trials])

        def _show(self) -> None:
            best = f"  best validation mIoU {self.best:.1f} %" if self.best else ""
            note = f"steps  {len(self.ended)}/{trials} trainings ended{best}"
            progress.update(sum(self.steps.values()), total or trials * steps, note)

    return ShowProgress()


def prune_trials(job_of: Callable[[dict[str, Any]], Job]) -> Any:
    """A callback that removes the checkpoints of trials that ended early, which would fill the disk.

    The best trial's stay: what is trained after the sweep goes on from them.

    Args:
        job_of: what Tune passes to a trial → the job that it trains.
    """
    from ray import tune

    class PruneTrials(tune.Callback):
        """Holds where every trial is (steps, mIoU), and the configs of those that ended and still have checkpoints.

        A running trial prunes nobody: what it scores on the way may be more than what it ends with.
        """

        def __init__(self) -> None:
            self.reached: dict[str, tuple[int, float]] = {}
            self.final: list[tuple[int, float]] = []
            self.ended: dict[str, dict[str, Any]] = {}

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            self.reached[trial.trial_id] = result.get("step", 0), result.get("miou", 0.0)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.ended[trial.trial_id] = trial.config
            self.final.append(self.reached.get(trial.trial_id, (0, 0.0)))

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            for name in self._worse():
                with contextlib.suppress(Away):  # the bucket; it can wait
                    if prune(job_of(self.ended[name])):  # else its process holds the lock for a moment more
                        del self.ended[name]

        def on_experiment_end(self, trials: Any, **info: Any) -> None:
            deadline = time.monotonic() + 8
            while self._worse() and time.monotonic() < deadline:
                self.on_step_end(0, trials)
                time.sleep(0.2)

        def _worse(self) -> list[str]:
            """Those that another one has beaten with at least as many steps."""
            return [
                name
                for name, reached in ((name, self.reached.get(name, (0, 0.0))) for name in self.ended)
                if any(steps >= reached[0] and miou > reached[1] for steps, miou in self.final)
            ]

    return PruneTrials()


def tell_trackers(job_of: Callable[[dict[str, Any]], Job], base: Config, sweep: str) -> Any:
    """A callback that starts, logs and ends every trial as a child of the sweep's run.

    Args:
        job_of: what Tune passes to a trial → the job that it trains.
        base: the sweep's config; a job's settings are what differs from it.
        sweep: the name of its run.
    """
    from ray import tune

    class TellTrackers(tune.Callback):
        """Holds the names of the trials that run, and how far each has been told of: some report a step again."""

        def __init__(self) -> None:
            self.names: dict[str, str] = {}
            self.steps: dict[str, int] = {}

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            try:
                job = job_of(trial.config)
            except Exception:  # the trial will say so itself, and alone
                return
            settings = trial.config.get("overrides") or changes(job.config, base)
            self.names[trial.trial_id] = job.directory.name
            trackers.start(trackers.Run(job.directory.name, job.kind, settings, sweep))

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if trial.trial_id in self.names and result["step"] > self.steps.get(trial.trial_id, 0):
                self.steps[trial.trial_id] = result["step"]
                trackers.log(self.names[trial.trial_id], result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._end(trial, ok=True)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._end(trial, ok=False)

        def _end(self, trial: Any, ok: bool) -> None:
            name = self.names.pop(trial.trial_id, None)
            if name is not None and name not in self.names.values():  # two trials may be one and the same training
                trackers.end(name, ok)

    return TellTrackers()


def tell_results(
    directory: Path,
    config: Config,
    jobs: Sequence[Job],
    rows: Sequence[Row],
    best: float | None,
    gpus: float,
) -> None:
    """Tell the trackers what a sweep ends with: pictures of everything that was trained, the table, the best trial.

    Args:
        best: validation mIoU of the best trial, in percent.
    """
    finished = {job.directory.name: job for job in jobs if job.kind != "expert" and job.done}
    pictures = draw_trainings(finished, directory / "pictures", gpus)
    for name, job in finished.items():
        trackers.start(trackers.Run(name, job.kind, changes(job.config, config), directory.name))  # if not told before
        trackers.show(name, pictures[name])
        trackers.end(name, ok=True)
    figures = trackers.table_figures(rows) | ({"miou": best} if best is not None else {})
    trackers.log(directory.name, figures)
    files = [directory / name for name in ("table.csv", "table.json", "trials.json", "best.yaml", "report.html")]
    trackers.show(directory.name, directory / "strips.png", rows, files)
    trackers.end(directory.name, ok=True)


def changes(config: Config, base: Config) -> dict[str, Any]:
    """The fields of a config that differ from the base's, dotted."""
    before = flatten(base.model_dump(mode="json"))
    return {key: value for key, value in flatten(config.model_dump(mode="json")).items() if before.get(key) != value}
