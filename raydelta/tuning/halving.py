"""Successive halving (Jamieson & Talwalkar 2016): which trials of a sweep train on, and which end.

Every trial trains to the first rung; of those, the best third goes on to the next one, and so to the end. A trial that
waits holds no device and goes on from its checkpoint. Ray Tune's ASHA never waits: it lets the first trials run on
while there is nothing to compare them with. Here every choice is made among all, so it is the same on any number of
devices; at most, some of them wait for the last trials of a rung.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raydelta.training.curve import read_curve


def make_milestones(steps: int, grace: float, reduction: int, every: int) -> list[int]:
    """The steps of the rungs, whole multiples of the first; checkpoints every ``every`` steps are at all of them.

    Args:
        grace: share of the steps before the first rung.
        reduction: each rung is so many times as far as the one before.
    """
    first = max(1, int(grace * steps))
    milestone = -(-first // every) * every if every < first else first
    milestones = []
    while milestone < steps:
        milestones.append(milestone)
        milestone *= reduction
    return milestones


def expect_steps(trials: int, ends: Sequence[int], reduction: int) -> int:
    """Steps of all trials together, with rungs at all of ``ends`` but the last."""
    total = before = 0
    for end in ends:
        total += trials * (end - before)
        trials, before = max(1, trials // reduction), end
    return total


class Rungs:
    """The scores of trials at the milestones, more is better, and whom they let go on."""

    def __init__(self, milestones: Sequence[int], reduction: int) -> None:
        self.milestones, self.reduction = milestones, reduction
        self._scores: list[dict[str, float]] = [{} for _ in milestones]

    def record(self, trial: str, step: int, score: float) -> bool:
        """Whether the trial has reached a rung that it had not."""
        new = [
            scores
            for milestone, scores in zip(self.milestones, self._scores, strict=True)
            if step >= milestone and trial not in scores
        ]
        for scores in new:
            scores[trial] = score if math.isfinite(score) else -math.inf
        return bool(new)

    def decide(self, waiting: Sequence[str], running: Iterable[str]) -> tuple[str | None, list[str]]:
        """Who of those who wait goes on next, if anyone, and who never will. No new trial may be left to start.

        Of a rung that nobody can reach any more the best 1/reduction goes on, rounded down, but at least one.
        """
        running = list(running)
        never: list[str] = []
        for level, scores in enumerate(self._scores):
            if any(trial not in scores for trial in running):
                break
            here = [trial for trial in waiting if trial in scores and self._level(trial) == level]
            best = sorted(scores, key=lambda trial: -scores[trial])[: max(1, len(scores) // self.reduction)]
            ready = [trial for trial in best if trial in here]
            if ready:
                return ready[0], never
            never += here
        return None, never

    def _level(self, trial: str) -> int:
        return max(level for level, scores in enumerate(self._scores) if trial in scores)


def make_scheduler(milestones: Sequence[int], reduction: int, concurrent: int) -> Any:
    """A scheduler of Ray Tune, for trials that report ``step`` and ``miou`` and can go on after they were stopped.

    Args:
        concurrent: at most so many trials at once; 0: as many as fit.
    """
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import FIFOScheduler

    class Halving(FIFOScheduler):
        """Pauses trials at rungs. Tune saves nothing of a scheduler, so those of a restored sweep report once more."""

        def __init__(self) -> None:
            super().__init__()
            self.rungs = Rungs(milestones, reduction)
            self.leaving: set[str] = set()  # those that run until they are paused

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            if trial.is_finished():
                for report in read_curve(Path(trial.path) / "result.json"):
                    self._record(trial, report)

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if not self._record(trial, result) or result["step"] >= result["steps"]:
                return str(self.CONTINUE)
            self.leaving.add(trial.trial_id)
            chosen, never = self._decide(controller)
            if chosen is not trial and trial not in never:
                controller.search_alg.on_trial_complete(trial.trial_id)  # what waits is none of those at once
                return str(self.PAUSE)
            self.leaving.remove(trial.trial_id)
            return str(self.CONTINUE if chosen is trial else self.STOP)

        def choose_trial_to_run(self, controller: Any) -> Any:
            chosen, never = self._decide(controller)
            for trial in never:
                if trial.status == Trial.PAUSED:
                    controller.stop_trial(trial)
            if chosen is None or chosen.status == Trial.RUNNING:
                return None
            self.leaving.discard(chosen.trial_id)
            return chosen

        def _record(self, trial: Any, report: dict[str, Any]) -> bool:
            return "miou" in report and self.rungs.record(trial.trial_id, report["step"], report["miou"])

        def _decide(self, controller: Any) -> tuple[Any, list[Any]]:
            """The trial to run next, which may still be leaving, and those that never run again."""
            trials = {trial.trial_id: trial for trial in controller.get_trials()}
            pending = [trial for trial in trials.values() if trial.status == Trial.PENDING]
            if pending or not controller.search_alg.is_finished():
                return (pending[0] if pending else None), []
            running = [name for name, trial in trials.items() if trial.status == Trial.RUNNING]
            running = [name for name in running if name not in self.leaving]
            waiting = [name for name, trial in trials.items() if trial.status == Trial.PAUSED or name in self.leaving]
            chosen, never = self.rungs.decide(waiting, running)
            if concurrent and len(running) >= concurrent:
                chosen = None
            return (trials[chosen] if chosen is not None else None), [trials[name] for name in never]

    return Halving()
