"""What is lost when something dies: the table in docs/reliability.md.

    python -m benchmarks.faults [--only NAME …] [--kills 200] [--json FILE] [--write docs/reliability.md]

A FILE that is there keeps the rows of other faults.

Every fault is brought about for real (SIGKILL, a directory that is gone, a damaged file) in a process of its own, on
the smallest data and networks. Lost are the steps that were trained before the fault and had to be trained again.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import describe_machine, write_json
from raydelta import checkpoint
from raydelta.cluster import SETTINGS, ensure_ray
from raydelta.config import Config, load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.errors import UserError
from raydelta.expert import SegmenterTraining
from raydelta.methods import Job, make_job
from raydelta.workers import train_here, working_directory

SMALL = {
    **{"data.width": 64, "data.height": 32, "data.synthetic_images": 24, "data.real_images": 20, "data.test_images": 4},
    **{"labels.budget": 4, "labels.validation": 2, "segmenter.depth": 3, "segmenter.decoder_channels": [16, 8, 8]},
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
    importlib.import_module("segmentation_models_pytorch")  # once, not in every child
    assert wait(forked(lambda: train_here(job))) == 0
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    whole = contents(job.directory / "checkpoint")
    shutil.rmtree(job.directory)
    moments, finished = random.Random(0), 0
    lost: list[int] = []
    while len(lost) < count:
        counter.value = newest(job)
        if kill_after(forked(lambda: train_here(job)), moments.uniform(0, took)):
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


def start_ray() -> None:
    """A private Ray for the faults that need one."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    ray.init("local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")


def pids_of(name: str) -> list[int]:
    """The processes of the cluster that run such a task or actor now."""
    import ray
    from ray.util.state import list_actors, list_tasks

    here = ray.get_runtime_context().gcs_address
    tasks = list_tasks(here, filters=[("func_or_class_name", "=", name), ("state", "=", "RUNNING")])
    actors = list_actors(here, filters=[("class_name", "=", name), ("state", "=", "ALIVE")])
    return [one.worker_pid for one in tasks if one.worker_pid] + [one.pid for one in actors]


def on_ray(job: Job, after: int, fault: Callable[[], bool]) -> tuple[int, list[int]]:
    """Train a job on Ray; from a step on, call ``fault`` until it says that it has struck. Steps lost, and reported."""
    from raydelta.workers import train_on_ray

    steps: list[int] = []
    struck: list[bool] = []

    def strike(metrics: dict[str, Any]) -> None:
        steps.append(metrics["step"])
        deadline = time.monotonic() + 30
        while metrics["step"] >= after and not struck and time.monotonic() < deadline:  # Ray's own lists lag behind
            struck.extend([True] * fault())

    train_on_ray(job, strike)
    assert struck, "the training was over before the fault"
    every = job.config.compute.report_every
    falls = [before - (then - every) for before, then in itertools.pairwise(steps)]
    assert steps[-1] == job.steps
    return max(0, *falls), steps


def kill_one(name: str) -> Callable[[], bool]:
    """A fault: SIGKILL for the first process that runs such a task or actor."""

    def fault() -> bool:
        found = pids_of(name)[:1]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    return fault


def worker(folder: Path) -> Result:
    """SIGKILL for the one worker of a training."""
    job = expert(folder, 240, 20)
    start_ray()
    lost, _ = on_ray(job, 70, kill_one("_task"))
    return {"fault": "kill -9 of the worker", "lost": lost, "interval": 20, "note": "goes on by itself"}


def worker_of_two(folder: Path) -> Result:
    """SIGKILL for one of two workers of Ray Train."""
    job = expert(folder, 80, 20, **{"compute.workers": 2})
    start_ray()
    lost, _ = on_ray(job, 30, kill_one("RayTrainWorker"))
    return {"fault": "kill -9 of one worker of two", "lost": lost, "interval": 20, "note": "goes on by itself"}


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


def node(folder: Path) -> Result:
    """SIGKILL for the node that trains, while another one is idle."""
    job = expert(folder, 240, 20)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True}), []
    import ray

    nodes.append(cluster.add_node(num_cpus=1))
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")

    def fault() -> bool:
        nodes.append(cluster.add_node(num_cpus=1, wait=False))
        cluster.remove_node(nodes[0], allow_graceful=False)
        return True

    lost, _ = on_ray(job, 70, fault)
    ray.shutdown()
    cluster.shutdown()
    return {"fault": "kill -9 of the node", "lost": lost, "interval": 20, "note": "goes on on another node"}


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """A command of raydelta, started in the folder."""
    words = [sys.executable, "-m", "raydelta.cli", *arguments, "--runs", str(folder)]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | environment)


def reported(folder: Path) -> list[int]:
    """The steps that the training of a command has reported so far."""
    lines = [line for path in folder.glob("unfinished/*/progress.jsonl") for line in path.read_text().split("\n")[:-1]]
    return [json.loads(line)["step"] for line in lines]


def train_until(folder: Path, step: int, process: subprocess.Popen[bytes]) -> int:
    """The last step that is reported when so many are."""
    while max(reported(folder), default=0) < step:
        assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
        time.sleep(0.1)
    return max(reported(folder))


def arguments_of(folder: Path, **values: Any) -> list[str]:
    """The config of the smallest training on the command line."""
    config = small(folder)
    sets = {"data.synthetic": config.data.synthetic, "data.real": config.data.real, "compute.checkpoint_every": 20}
    return [f"{key}={json.dumps(value)}" for key, value in (SMALL | sets | values).items()]


def train_expert(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The command whose parts are killed."""
    return command(folder, "train", "expert", *arguments_of(folder, **{"expert.steps": 240}), **environment)


def driver(folder: Path) -> Result:
    """SIGKILL for the command itself; then the same command again."""
    first = train_expert(folder)
    before = train_until(folder, 70, first)
    first.kill()
    first.wait()
    before = max([before, *reported(folder)])
    return rerun(folder, before, "kill -9 of the driver")


def rerun(folder: Path, before: int, fault: str, **environment: str) -> Result:
    """The same command again: where it goes on."""
    for path in folder.glob("unfinished/*/progress.jsonl"):
        path.unlink()
    again = train_expert(folder, **environment)
    train_until(folder, 1, again)
    first = reported(folder)[0]
    assert again.wait(300) == 0, (folder / "log.txt").read_text()[-3000:]
    note = "the same command goes on"
    return {"fault": fault, "lost": before - (first - 5), "interval": 20, "note": note}


def head(folder: Path) -> Result:
    """SIGKILL for the head node; then the same command on another cluster."""
    from ray.cluster_utils import Cluster

    def build() -> Any:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True})

    cluster = build()
    first = train_expert(folder, RAY_ADDRESS=cluster.address)
    train_until(folder, 70, first)
    start = time.monotonic()
    for processes in list(cluster.head_node.all_processes.values()):
        for information in processes:
            information.process.kill()
    code = first.wait(300)
    ended = time.monotonic() - start
    before = max(reported(folder))
    cluster.shutdown()
    another = build()
    result = rerun(folder, before, "kill -9 of the head", RAY_ADDRESS=another.address)
    another.shutdown()
    note = f"the command ends after {ended:.0f} s with code {code}; on a new cluster it goes on"
    return result | {"note": note}


def sweep(folder: Path) -> Result:
    """SIGKILL for the driver of a sweep of three trials, one of which takes more memory than there is; then again."""
    space = {
        "search": {"generator.width": {"grid": [4, 200_000, 6, 8]}},
        **{"concurrent": 1, "trials": 1, "scheduler": "none", "table": {"methods": ["guided"]}},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    steps = {"expert.steps": 20, "translator.steps": 60}
    fields = [word for word in arguments_of(folder, **steps) if "generator.width" not in word]
    arguments = ["tune", str(folder / "space.yaml"), *fields]
    first = command(folder, *arguments)
    while len(list(folder.glob("translator-*/stage.json"))) < 2 or not list(folder.glob("unfinished/*/checkpoint-*")):
        assert first.poll() is None, (folder / "log.txt").read_text()[-3000:]
        time.sleep(0.05)
    first.kill()
    first.wait()
    time.sleep(3)
    stages = {path: path.stat().st_mtime_ns for path in folder.glob("*/stage.json")}
    kept = [int(path.name.partition("-")[2]) for path in folder.glob("unfinished/translator-*/checkpoint-*")]
    again = command(folder, *arguments)
    assert again.wait(500) == 0, (folder / "log.txt").read_text()[-3000:]
    assert {path: path.stat().st_mtime_ns for path in stages} == stages, "finished trials are not trained again"
    (trials,) = folder.glob("tune-*/trials.json")
    outcomes = json.loads(trials.read_text())
    (failed,) = [trial for trial in outcomes if trial["error"]]
    assert failed["overrides"] == {"generator.width": 200_000}
    assert sum(trial["miou"] is not None for trial in outcomes) == 3
    note = f"{len(stages) - 1} of 3 trials were finished and stay, one goes on from step {max(kept, default=0)} of 60; "
    note += f"the trial that runs out of memory is named ({failed['error'][:60]}…)"
    return {"fault": "a trial out of memory, and kill -9 of the sweep", "lost": None, "interval": 20, "note": note}


FAULTS: dict[str, Callable[..., Result]] = {
    "worker": worker,
    "worker-of-two": worker_of_two,
    "driver": driver,
    "node": node,
    "head": head,
    "sweep": sweep,
    "storage-away": storage_away,
    "disk-full": disk_full,
    "damaged-checkpoint": damaged_checkpoint,
    "kills": kills,
}
BEGIN, END = "<!-- faults: {} -->", "<!-- end of faults -->"


def format_markdown(path: Path) -> str:
    """The table of a JSON file that ``main`` has written."""
    lines = ["| fault | steps lost | of an interval of | what happens |", "| --- | --- | --- | --- |"]
    for row in json.loads(path.read_text())["faults"]:
        lost = "–" if row["lost"] is None else row["lost"]
        lines.append(f"| {row['fault']} | {lost} | {row['interval']} | {row['note']} |")
    return "\n".join(lines)


def bring_about(name: str, kills: int, folder: Path) -> Result | None:
    """A fault, in a process of its own; None if it did not end as it should."""
    path = folder / name
    path.mkdir()
    words = [sys.executable, "-m", "benchmarks.faults", "--only", name, "--kills", str(kills), "--child", str(path)]
    start = time.monotonic()
    process = subprocess.Popen(words, start_new_session=True)
    code = process.wait()
    with contextlib.suppress(ProcessLookupError):  # what a fault that went wrong has left
        os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        print(f"{name}: failed with code {code}", file=sys.stderr)
        return None
    seconds = round(time.monotonic() - start)
    return {"name": name} | json.loads((path / "result.json").read_text()) | {"seconds": seconds}


def main() -> None:
    """Bring about, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (name,) = options.only
        runs = options.child / "work"
        runs.mkdir()
        extra = {"count": options.kills} if name == "kills" else {}
        (options.child / "result.json").write_text(json.dumps(FAULTS[name](runs, **extra)))
        return
    rows: list[Result] = []
    if options.json and Path(options.json).exists():
        known = json.loads(Path(options.json).read_text())["faults"]
        rows = [row for row in known if row["name"] not in options.only]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="raydelta-faults-") as temporary:
        ensure_ray()
        import ray  # after the settings

        prepare(Path(temporary))
        ray.shutdown()
        for name in options.only:
            row = bring_about(name, options.kills, Path(temporary))
            failed += row is None
            if row is not None:
                rows = sorted([*rows, row], key=lambda one: list(FAULTS).index(one["name"]))
                print(json.dumps(row), flush=True)
                write_json(options.json, {"machine": describe_machine(), "faults": rows})
    if options.write and options.json:
        before, _, rest = options.write.read_text().partition("<!-- faults:")
        begin, after = BEGIN.format(options.json), rest.partition(END)[2]
        options.write.write_text(f"{before}{begin}\n{format_markdown(Path(options.json))}\n{END}{after}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
