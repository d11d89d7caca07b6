"""Faults of a training in this process or a child of it: kills, disks, damaged files, storage that is away.

Each brings one about and says what it cost; ``benchmarks.faults`` runs them and writes the table.
"""

import importlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raydelta.config import Config, load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.errors import UserError
from raydelta.training import checkpoint
from raydelta.training.job import Job, make_job
from raydelta.training.run import train_here, working_directory
from raydelta.training.supervised import SegmenterTraining

SMALL = {
    **{"data.width": 64, "data.height": 32, "data.synthetic_images": 24, "data.real_images": 20, "data.test_images": 4},
    **{
        "labels.budget": 4,
        "labels.validation": 2,
        "segmenter.architecture": "unet",
        "segmenter.depth": 3,
        "segmenter.decoder_channels": [16, 8, 8],
    },
    **{"expert.batch": 4, "generator.width": 4, "generator.blocks": 1, "discriminator.width": 4},
    **{"translator.batch": 2, "student.batch": 4, "compute.report_every": 5},
}
Result = dict[str, Any]


def prepare(folder: Path) -> None:
    """Make the data of all faults, and the config that names it."""
    config = prepare_data(load_config(overrides=SMALL), folder)
    (folder / "config.json").write_text(config.model_dump_json())


def small(runs: Path) -> Config:
    """The config of the smallest training."""
    (path,) = (folder / "config.json" for folder in runs.parents if (folder / "config.json").exists())
    return Config(**json.loads(path.read_text()))


def expert(runs: Path, steps: int, interval: int, **values: Any) -> Job:
    """The training that is interrupted."""
    fields = {"expert.steps": steps, "compute.checkpoint_every": interval}
    return make_job("expert", override(small(runs), fields | values), runs)


def forked(work: Callable[[], None]) -> int:
    """Do it in a child process; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except UserError as error:
        print(error, file=sys.stderr)
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, seconds: float) -> bool:
    """SIGKILL for a child that has computed for so long (a clock says little on a busy CPU); False: it ended before."""
    while int(Path(f"/proc/{child}/schedstat").read_text().split()[0]) < seconds * 1e9:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


class Counter:
    """The last step that any child has trained."""

    def __init__(self, steps: int) -> None:
        self._memory = mmap.mmap(-1, 8)
        step = SegmenterTraining.step

        def counted(training: Any, batch: Any, done: float) -> Any:
            terms = step(training, batch, done)
            self.value = round(done * steps) + 1
            return terms

        SegmenterTraining.step = counted  # type: ignore[method-assign, assignment]

    @property
    def value(self) -> int:
        return struct.unpack("q", self._memory[:8])[0]

    @value.setter
    def value(self, step: int) -> None:
        self._memory[:8] = struct.pack("q", step)


def contents(path: Path) -> str:
    """A digest of what was learnt."""
    return checkpoint.read_meta(path)["sha256"]["networks.safetensors"]


def newest(job: Job) -> int:
    """The step of the last checkpoint; every one that is there has to be whole."""
    steps = [0]
    for path in checkpoint.list_checkpoints(working_directory(job)):
        assert checkpoint.find_whole([path]) == path
        steps.append(checkpoint.read_meta(path)["step"])
    return max(steps)


def kills(folder: Path, count: int = 200) -> Result:
    """SIGKILL at random moments: while it starts, trains, saves or publishes."""
    steps, interval = 12, 3
    job, counter = expert(folder, steps, interval), Counter(steps)
    torch.set_num_threads(1)
    for name in ("segmentation_models_pytorch", "ray"):  # once, not in every child
        importlib.import_module(name)
    assert wait(forked(lambda: train_here(job))) == 0
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    whole = contents(job.directory / "checkpoint")
    shutil.rmtree(job.directory)
    moments, finished = random.Random(0), 0
    lost: list[int] = []
    while len(lost) < count or not finished:
        counter.value = newest(job)
        # A busy machine computes longer than it took: without a fifth more, hardly a training would end.
        seconds = moments.uniform(0, 1.2 * took) if len(lost) < count else float("inf")
        if kill_after(forked(lambda: train_here(job)), seconds):
            lost.append(0 if job.done else counter.value - newest(job))
        if job.done:
            assert contents(job.directory / "checkpoint") == whole
            assert checkpoint.find_whole([job.directory / "checkpoint"])
            shutil.rmtree(job.directory)
            shutil.rmtree(working_directory(job), ignore_errors=True)
            finished += 1
    return {
        "fault": f"{count} × kill -9 at random moments",
        "lost": max(lost),
        "interval": interval,
        "note": f"{finished} trainings ended meanwhile, each bit for bit as without a kill",
    }


def disk_full(folder: Path) -> Result:
    """No file of more than 40 kB can be written from step 7 on."""
    job, counter = expert(folder, 20, 4, **{"compute.report_every": 2}), Counter(20)

    def fill(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert wait(forked(lambda: train_here(job, fill))) == 1
    lost = counter.value - newest(job)
    assert wait(forked(lambda: train_here(job))) == 0
    note = "stops and says so; the same command goes on"
    return {"fault": "disk full while a checkpoint is written", "lost": lost, "interval": 4, "note": note}


def damaged_checkpoint(folder: Path) -> Result:
    """A bit of the last checkpoint flips while the training is dead."""
    job, counter = expert(folder, 20, 4, **{"compute.report_every": 2}), Counter(20)

    def die(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(forked(lambda: train_here(job, die))) == -signal.SIGKILL
    before = counter.value
    weights = checkpoint.list_checkpoints(working_directory(job))[0] / "networks.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    first: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        train_here(job, lambda metrics: first.append(metrics["step"]))
    assert any("damaged" in str(warning.message) for warning in caught)
    note = "named and passed over: the last but one is kept for this"
    lost = before - (first[0] - 2)
    return {"fault": "kill -9, and the last checkpoint is damaged", "lost": lost, "interval": 4, "note": note}


def storage_away(folder: Path, seconds: float = 60) -> Result:
    """The directory of all runs is gone for a minute."""
    runs, gone = folder / "runs", folder / "away"
    job = expert(runs, 20, 4)
    steps: list[int] = []

    def take_away(metrics: dict[str, Any]) -> None:
        steps.append(metrics["step"])
        if metrics["step"] == 5:
            runs.rename(gone)
            threading.Timer(seconds, lambda: gone.rename(runs)).start()

    start = time.monotonic()
    train_here(job, take_away)
    assert time.monotonic() - start > seconds
    assert sorted(set(steps)) == steps
    assert not gone.exists()
    return {"fault": f"storage away for {seconds:.0f} s", "lost": 0, "interval": 4, "note": "waits for it"}
