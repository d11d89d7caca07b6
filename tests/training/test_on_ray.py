import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors, list_tasks

from raydelta.compute.tasks import cause_of
from raydelta.config import Config, load_config, override, save_config
from raydelta.data.prepare import prepare_data
from raydelta.errors import TrainingError, UserError
from raydelta.results.evaluate import evaluate_job
from raydelta.storage.bucket import names_in, open_runs
from raydelta.training import checkpoint, on_ray
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.job import Job, make_job, read_job
from raydelta.training.on_ray import choose_workers, train_on_ray
from raydelta.training.run import train_here
from tests.tiny import TINY

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def config(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Config:
    runs = tmp_path_factory.mktemp("data")
    return prepare_data(load_config(overrides=TINY), runs)


def expert(config: Config, runs: Path, **values: Any) -> Job:
    return make_job("expert", override(config, values), runs)


@pytest.mark.slow
def test_sets_too_large_for_the_cache_stream(config: Config, tmp_path: Path) -> None:
    """Sibling: sets in object storage, which stream too."""
    expert_job = expert(config, tmp_path)
    train_here(expert_job)
    base = override(config, {"data.cache_gib": 0.0, "compute.workers": 2, "translator.steps": 2})
    translator = make_job("translator", base, tmp_path, expert_job.directory)
    train_on_ray(translator)
    assert translator.done


def test_sets_in_object_storage(config: Config, s3: str, tmp_path: Path) -> None:
    import boto3

    for path in Path(config.data.synthetic).iterdir():
        boto3.client("s3").upload_file(str(path), "raydelta-tests", f"synthetic/{path.name}")
    base = override(config, {"data.synthetic": f"{s3}/synthetic", "data.cache_gib": 0.0})
    job = make_job("expert", base, tmp_path)
    assert job.directory.name == make_job("expert", config, tmp_path).directory.name, "the same data, wherever it lies"
    train_on_ray(job)
    assert {row.images_of for row in evaluate_job("synthetic only", job)} >= {"synthetic test", "test"}


@pytest.mark.parametrize(("count", "name"), [(1, "_task"), pytest.param(2, "RayTrainWorker", marks=pytest.mark.slow)])
def test_killed_worker_goes_on_from_the_last_checkpoint(count: int, name: str, config: Config, tmp_path: Path) -> None:
    length = 400 if count == 1 else 40  # a task does many steps between two looks at it
    base = override(config, {"expert.steps": length, "compute.workers": count})
    job = make_job("expert", base, tmp_path)
    steps: list[int] = []
    killed: list[int] = []

    def running() -> list[int]:
        here = ray.get_runtime_context().gcs_address
        if count == 1:
            alive = [("func_or_class_name", "=", name), ("state", "=", "RUNNING")]
            return [task.worker_pid for task in list_tasks(here, filters=alive) if task.worker_pid]
        alive = [("class_name", "=", name), ("state", "=", "ALIVE")]
        return [actor.pid for actor in list_actors(here, filters=alive)]

    def kill_once(report: dict[str, Any]) -> None:
        steps.append(report["step"])
        deadline = time.monotonic() + 20
        while report["step"] >= 6 and not killed and time.monotonic() < deadline:  # Ray's own list lags behind
            killed.extend(running()[:1])
            if killed:
                os.kill(killed[0], signal.SIGKILL)

    train_on_ray(job, kill_once)
    assert killed
    assert steps[-1] == length
    assert steps.count(2) == 1, "it must not start from the beginning"
    assert checkpoint.read_meta(job.directory / "checkpoint")["step"] == length
    curve = read_curve(job.directory / CURVE)
    assert [report["step"] for report in curve] == list(range(2, length + 1, 2)), "whole, each step once"
    assert not (tmp_path / "unfinished" / job.directory.name).exists()
    assert {row.images_of for row in evaluate_job("synthetic only", job)} >= {"synthetic test", "test"}


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_in_a_bucket(
    workers: int, config: Config, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    address = f"{s3}/workers-{workers}"
    job = expert(config, open_runs(address, write=True), **{"compute.workers": workers})
    steps: list[int] = []
    train_on_ray(job, lambda metrics: steps.append(metrics["step"]))
    assert steps == [2, 4, 6]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    found = read_job(open_runs(address) / job.directory.name)
    assert [report["step"] for report in read_curve(found.directory / CURVE)] == [2, 4, 6]
    assert checkpoint.read_weights(found.directory / "checkpoint", "segmenter")
    assert names_in(open_runs(address) / "unfinished") == []


def test_killed_while_it_is_published(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = expert(config, tmp_path)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("raydelta.training.run.complete_stage", killed)
        train_here(job)
    assert not job.done
    steps: list[int] = []
    train_here(job, lambda metrics: steps.append(metrics["step"]))
    assert steps == [6], "Ray Tune takes a trial that reports nothing for a failed one"
    assert job.done


def test_bad_input_comes_through_ray_as_one_message(config: Config, tmp_path: Path) -> None:
    base = override(config, {"labels.budget": 1000})
    job = expert(config, tmp_path)
    train_here(job)
    with pytest.raises(UserError, match=r"labels\.budget = 1000"):
        train_on_ray(make_job("translator", base, tmp_path, job.directory))


def test_a_loss_that_is_not_finite_stops_with_its_name(config: Config, tmp_path: Path) -> None:
    job = expert(config, tmp_path)
    train_here(job)
    late = {"compute.report_every": 20, "compute.checkpoint_every": 20}  # else weights are found before losses
    broken = {"translator.learning_rate": 1.0, "cycle.real": 3e38, "cycle.synthetic": 3e38, "translator.steps": 20}
    base = override(config, broken | late)
    with pytest.raises(TrainingError, match=r"is not finite on rank 0 from step \d+ on"):
        train_on_ray(make_job("translator", base, tmp_path, job.directory))


def test_more_workers_than_the_cluster_has(config: Config, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"compute\.workers = 4, but the cluster can give 2 CPUs at most; ask for fewer"
    ):
        train_on_ray(expert(config, tmp_path, **{"compute.workers": 4}))


def test_workers_that_do_not_divide_the_batch(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compute\.workers = 2 does not divide the batch of the expert, 3 images"):
        choose_workers(expert(config, tmp_path, **{"compute.workers": 2, "expert.batch": 3}))


def test_workers_follow_the_cluster_and_the_batch(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_workers(expert(config, tmp_path)) == (1, 0)
    nodes = [{"CPU": 4.0}, *[{"CPU": 8.0, "GPU": 4.0}] * 2, {"CPU": 8.0, "GPU": 1.0}]
    monkeypatch.setattr(on_ray, "capacity", lambda: nodes)
    assert choose_workers(expert(config, tmp_path, **{"expert.batch": 18})) == (3, 1), "the GPUs of one node"
    assert choose_workers(expert(config, tmp_path, **{"expert.batch": 18, "compute.workers": 9})) == (9, 1)
    assert choose_workers(expert(config, tmp_path, **{"compute.workers": 2}), gpus=0) == (2, 0)
    assert choose_workers(expert(config, tmp_path), gpus=0) == (1, 0)


def test_an_elastic_training_needs_the_least_and_a_batch_that_every_count_divides(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "capacity", lambda: [{"CPU": 2.0}])
    assert choose_workers(expert(config, tmp_path, **{"expert.batch": 12, "compute.workers": (1, 4)})) == (4, 0)
    with pytest.raises(UserError, match=r"compute\.workers = 3 does not divide the batch of the expert, 4 images"):
        choose_workers(expert(config, tmp_path, **{"expert.batch": 4, "compute.workers": (1, 4)}))
    with pytest.raises(UserError, match=r"compute\.workers = 3, but the cluster can give 2 CPUs at most"):
        choose_workers(expert(config, tmp_path, **{"expert.batch": 12, "compute.workers": (3, 4)}))
    with pytest.raises(UserError, match=r"compute\.workers = \[4, 2\]: give the least first"):
        expert(config, tmp_path, **{"compute.workers": (4, 2)})


ELASTIC = """
import sys
from pathlib import Path
from raydelta.compute.cluster import set_defaults
set_defaults()
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from raydelta.config import load_config
from raydelta.training import on_ray
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.job import make_job
on_ray.RESIZE = 5.0
node = {"num_cpus": 1, "object_store_memory": 200_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": True, "dashboard_port": 0})
other = cluster.add_node(**node, dashboard_agent_listen_port=0)
cluster.wait_for_nodes()
ray.init(cluster.address, log_to_driver=False)
job = make_job("expert", load_config(file=sys.argv[1]), Path(sys.argv[2]))
workers = []

def follow(report):
    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    workers.append(len(list_actors(ray.get_runtime_context().gcs_address, filters=alive)))
    if report["step"] >= 8 and len(cluster.list_all_nodes()) == 2:
        cluster.remove_node(other)

on_ray.train_on_ray(job, follow)
print("workers", workers[0], workers[-1], [report["step"] for report in read_curve(job.directory / CURVE)], job.done)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_training_goes_on_with_the_workers_that_are_left(config: Config, tmp_path: Path) -> None:
    base = override(config, {"compute.workers": (1, 2), "expert.steps": 60})
    save_config(base, tmp_path / "config.yaml")
    session = tempfile.mkdtemp(prefix="ray")  # not where other commands of this machine look for a running Ray
    command = [sys.executable, "-c", ELASTIC, str(tmp_path / "config.yaml"), str(tmp_path / "runs")]
    settings = {"RAY_TMPDIR": session, "RAY_raylet_start_wait_time_s": "180"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=450, env=os.environ | settings)
    shutil.rmtree(session, ignore_errors=True)
    assert f"workers 2 1 {list(range(2, 61, 2))} True" in done.stdout, done.stdout + done.stderr


def test_gpus_without_a_cpu_each_are_not_counted(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "capacity", lambda: [{"CPU": 2.0, "GPU": 4.0}])
    assert choose_workers(expert(config, tmp_path)) == (2, 1)
    with pytest.raises(UserError, match=r"workers = 4, but the cluster can give 2 workers a CPU and 1 GPU at most"):
        choose_workers(expert(config, tmp_path, **{"compute.workers": 4}))


def test_cause_is_found_behind_rays_wrapping() -> None:
    @ray.remote
    def fail() -> None:
        raise UserError("file.png: too small")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    assert str(cause_of(caught.value)) == "file.png: too small"


ON_A_GPU = """
import sys
from pathlib import Path
import ray
from raydelta.compute.cluster import set_defaults
set_defaults()


def without_gpu():
    import torch
    import ray.train.torch
    ray.train.torch.get_device = lambda: torch.device("cpu")

made_up = {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:T4": 1}}
ray.init("local", **made_up, log_to_driver=False, runtime_env={"worker_process_setup_hook": without_gpu})
import functools, requests
import ray.train.torch as torch_trainer
gloo = torch_trainer.TorchConfig(backend="gloo")  # NCCL would look for the GPU
torch_trainer.TorchTrainer = functools.partial(torch_trainer.TorchTrainer, torch_config=gloo)
from raydelta.compute.credentials import token_header
from raydelta.config import load_config
from raydelta.training.job import make_job
from raydelta.training.on_ray import train_on_ray
config = load_config(file=sys.argv[1])
job = make_job("expert", config, Path(sys.argv[2]))
train_on_ray(job, resources={"CPU": 1, "GPU": 1, "accelerator_type:T4": 0.001})
assert job.done
address = f"http://{ray._private.worker._global_node.address_info['webui_url']}/api/train/v2/runs/v1"
runs = requests.get(address, headers=token_header(), timeout=30).json()["train_runs"]
print("runs", [run["name"] for run in runs], runs[0]["status"], job.directory.name)
"""


def test_a_training_on_one_gpu_is_a_run_on_the_dashboard(config: Config, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.yaml")
    command = [sys.executable, "-c", ON_A_GPU, str(tmp_path / "config.yaml"), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    found = [path.name for path in (tmp_path / "runs").glob("expert-*")]
    assert found and f"runs {found} FINISHED {found[0]}" in done.stdout, done.stdout + done.stderr
