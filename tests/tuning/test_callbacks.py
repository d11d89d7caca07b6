from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydelta.config import Config
from raydelta.storage.locks import exclusive
from raydelta.training.job import Job
from raydelta.training.run import working_directory
from raydelta.tuning.callbacks import prune_trials


@dataclass
class Trial:
    """What Tune tells a callback of a trial."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def test_trials_that_ended_early_leave_no_checkpoints_but_the_best_one(tmp_path: Path) -> None:
    def job_of(config: dict[str, Any]) -> Job:
        return Job(kind="translator", config=Config(), directory=tmp_path / f"translator-{config['name']}")

    def kept() -> list[str]:
        return sorted(path.parent.name[-1] for path in tmp_path.glob("unfinished/*/checkpoint-2"))

    callback = prune_trials(job_of)
    trials = [Trial(name, {"name": name}) for name in "abc"]
    for trial in trials:
        (working_directory(job_of(trial.config)) / "checkpoint-2").mkdir(parents=True)
    for trial, score in zip(trials, (30.0, 20.0, 25.0), strict=True):
        callback.on_trial_result(0, trials, trial, {"step": 2, "miou": score})
    callback.on_trial_complete(0, trials, trials[1])
    callback.on_step_end(0, trials)
    assert kept() == ["a", "b", "c"], "nothing that has ended is better"
    with exclusive(job_of(trials[1].config).directory):  # its process has not quite ended
        callback.on_trial_complete(0, trials, trials[0])
        callback.on_step_end(0, trials)
        assert kept() == ["a", "b", "c"]
    callback.on_step_end(0, trials)
    assert kept() == ["a", "c"], "what follows the sweep goes on from the best one, and one that runs from its own"
    callback.on_trial_result(0, trials, trials[2], {"step": 4, "miou": 31.0})
    callback.on_step_end(0, trials)
    assert kept() == ["a", "c"], "one that is ahead may yet fall behind"
    callback.on_trial_complete(0, trials, trials[2])
    callback.on_experiment_end(trials)
    assert kept() == ["c"]
