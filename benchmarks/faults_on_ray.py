"""Faults of processes and nodes of a Ray cluster, and of the commands that use it.

Each brings one about and says what it cost; ``benchmarks.faults`` runs them and writes the table.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from benchmarks.common import family_of
from benchmarks.faults_here import SMALL, Result, contents, expert, small
from raydelta.compute.cluster import SETTINGS
from raydelta.training.job import Job
from raydelta.training.run import train_here

DASHBOARD = {"include_dashboard": True, "dashboard_port": 0}


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
    from raydelta.training.on_ray import train_on_ray

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


def node(folder: Path) -> Result:
    """SIGKILL for the node that trains, while another one comes."""
    lost, _ = without_node(expert(folder, 240, 20), notice=0)
    return {"fault": "kill -9 of the node", "lost": lost, "interval": 20, "note": "goes on on another node"}


def preemption(folder: Path) -> Result:
    """The same after a notice, as spot instances get one."""
    lost, _ = without_node(expert(folder, 2000, 200), notice=10)
    note = "saves at every report (5 steps) from the notice on, and goes on on another node"
    return {"fault": "a node preempted, with a notice of 10 s", "lost": lost, "interval": 200, "note": note}


def preemption_of_two(folder: Path) -> Result:
    """The same with two workers of Ray Train on a node each, of which one is taken away."""
    lost, _ = without_node(expert(folder, 600, 300, **{"compute.workers": 2}), notice=10)
    return {
        "fault": "one of two nodes preempted, with a notice of 10 s",
        "lost": lost,
        "interval": 300,
        "note": "both workers save at every report (5 steps) from the notice on, and go on, one on another node",
    }


def without_node(job: Job, notice: float) -> tuple[int, list[int]]:
    """Take a node away that trains, so many seconds after it was told."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray.cluster_utils import Cluster

    cluster, nodes = (
        Cluster(initialize_head=True, head_node_args={"num_cpus": 0} | DASHBOARD),
        [],
    )
    import ray

    workers = job.config.compute.workers or 1
    assert isinstance(workers, int)
    nodes += [cluster.add_node(num_cpus=1) for _ in range(workers)]
    gone = threading.Event()
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")

    def take_away() -> None:
        cluster.remove_node(nodes[0], allow_graceful=False)
        gone.set()

    def fault() -> bool:
        nodes.append(cluster.add_node(num_cpus=1, wait=False))
        if notice:
            address = ["--address", cluster.address, "--node-id", nodes[0].node_id]
            why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            words = [
                str(Path(sys.executable).with_name("ray")),
                "drain-node",
                *address,
                *why,
                "--deadline-remaining-seconds",
                f"{notice:.0f}",
            ]
            subprocess.run(words, check=True)
        threading.Timer(notice, take_away).start()
        return True

    found = on_ray(job, 70, fault)
    assert gone.is_set(), "the training was over before its node was gone"
    ray.shutdown()
    cluster.shutdown()
    return found


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


def train_expert(folder: Path, workers: int | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """The command whose parts are killed."""
    fields = arguments_of(folder, **{"expert.steps": 240, "compute.workers": workers})
    return command(folder, "train", "expert", *fields, **environment)


def driver(folder: Path) -> Result:
    """SIGKILL for the command itself; then the same command again."""
    first = train_expert(folder)
    before = train_until(folder, 70, first)
    first.kill()
    first.wait()
    before = max([before, *reported(folder)])
    return rerun(folder, before, "kill -9 of the driver")


def controller(folder: Path) -> Result:
    """SIGKILL for the controller of Ray Train; then the same command again."""
    first = train_expert(folder, 2)
    train_until(folder, 70, first)
    start = time.monotonic()
    for pid in family_of(first.pid):
        if b"TrainController" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    code = first.wait(300)
    assert code != 0, "it was killed"
    ended = time.monotonic() - start
    result = rerun(folder, max(reported(folder)), "kill -9 of the controller of two workers", 2)
    return result | {"note": f"the command ends after {ended:.0f} s with code {code}; {result['note']}"}


def rerun(folder: Path, before: int, fault: str, workers: int | None = None, **environment: str) -> Result:
    """The same command again: where it goes on."""
    for path in folder.glob("unfinished/*/progress.jsonl"):
        path.unlink()
    again = train_expert(folder, workers, **environment)
    train_until(folder, 1, again)
    first = reported(folder)[0]
    assert again.wait(300) == 0, (folder / "log.txt").read_text()[-3000:]
    note = "the same command goes on"
    return {"fault": fault, "lost": before - (first - 5), "interval": 20, "note": note}


def head(folder: Path) -> Result:
    """SIGKILL for the head node; then the same command on another cluster."""
    from ray.cluster_utils import Cluster

    def build() -> Any:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 1} | DASHBOARD)

    cluster = build()
    first = train_expert(folder, RAY_ADDRESS=cluster.address)
    train_until(folder, 70, first)
    start = time.monotonic()
    processes = [info.process.pid for infos in cluster.head_node.all_processes.values() for info in infos]
    for pid in {descendant for process in processes for descendant in family_of(process)}:  # its workers too
        os.kill(pid, signal.SIGKILL)
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


def joins(folder: Path) -> Result:
    """No loss but a gain: a node that joins while a sweep runs takes trials."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1} | DASHBOARD)
    space = {"search": {"guidance.weight": {"grid": [0.2, 0.3, 0.4, 0.5, 0.6]}}, "trials": 1, "scheduler": "none"}
    (folder / "space.yaml").write_text(yaml.safe_dump(space | {"table": {"methods": ["guided"]}}))
    fields = arguments_of(folder, **{"expert.steps": 20, "translator.steps": 400})
    swept = command(folder, "tune", str(folder / "space.yaml"), *fields, RAY_ADDRESS=cluster.address)
    while not (started := list(folder.glob("tune-*/sweep/*/result.json"))):
        assert swept.poll() is None, (folder / "log.txt").read_text()[-3000:]
        time.sleep(0.05)
    assert len(started) == 1, "one CPU, one trial"
    cluster.add_node(num_cpus=1)
    assert swept.wait(500) == 0, (folder / "log.txt").read_text()[-3000:]
    cluster.shutdown()
    lines = [path.read_text().split("\n")[:-1] for path in folder.glob("tune-*/sweep/*/result.json")]
    spans = [(json.loads(found[0])["timestamp"], json.loads(found[-1])["timestamp"]) for found in lines]
    at_once = max(sum(first <= moment <= last for first, last in spans) for moment, _ in spans)
    assert at_once == 2, f"{at_once} trials at once"
    note = "takes trials: two at once where it was one"
    return {"fault": "a node that joins a sweep", "lost": None, "interval": 20, "note": note}


def cluster_kills(folder: Path, count: int = 20) -> Result:
    """SIGKILL at random moments for the command, the process that trains, or the node under it."""
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    job = expert(folder, 240, 20)
    train_here(job)
    whole = contents(job.directory / "checkpoint")
    shutil.rmtree(job.directory)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0} | DASHBOARD)
    node = cluster.add_node(num_cpus=1)
    random, finished, killed = Random(0), 0, Counter[str]()
    process = train_expert(folder, RAY_ADDRESS=cluster.address)
    while killed.total() < count:
        time.sleep(random.uniform(0.5, 8))
        if process.poll() is not None:  # by what was killed, or by itself
            if job.done:
                assert contents(job.directory / "checkpoint") == whole
                shutil.rmtree(job.directory)
                finished += 1
            process = train_expert(folder, RAY_ADDRESS=cluster.address)
            continue
        victim = random.choice(("command", "training", "node"))
        training = [pid for pid in family_of(process_of(node)) if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if victim == "node":
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=1)
        elif victim == "command":
            process.kill()
        elif training:
            os.kill(random.choice(training), signal.SIGKILL)
        killed[victim] += victim != "training" or bool(training)
    while not job.done:
        if process.poll() is not None:
            process = train_expert(folder, RAY_ADDRESS=cluster.address)
        time.sleep(1)
    process.wait()
    assert contents(job.directory / "checkpoint") == whole
    cluster.shutdown()
    note = f"{finished + 1} trainings ended meanwhile and after, each bit for bit as without a kill ("
    note += ", ".join(f"{times} × the {victim}" for victim, times in sorted(killed.items())) + ")"
    return {"fault": f"{count} × kill -9 at random moments on a cluster", "lost": None, "interval": 20, "note": note}


def process_of(node: Any) -> int:
    """The process of a node's raylet, from which its workers descend."""
    (information,) = node.all_processes["raylet"]
    return int(information.process.pid)
