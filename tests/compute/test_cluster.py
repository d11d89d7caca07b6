import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import yaml

from raydelta.compute import capacity, cluster, credentials, remote
from raydelta.compute.cluster import Cluster, choose_preset
from raydelta.errors import UserError


@contextlib.contextmanager
def autoscaler(folder: Path, types: dict[str, Any], max_workers: int, address: str | None = None) -> Iterator[None]:
    """A process with the command line of the autoscaler of the running Ray, or of the one at an address."""
    tree = {"head_node_type": "head", "max_workers": max_workers, "available_node_types": types}
    (folder / "autoscaling.yaml").write_text(yaml.safe_dump(tree))
    address = address or ray.get_runtime_context().gcs_address
    options = [f"--gcs-address={address}", f"--autoscaling-config={folder}/autoscaling.yaml"]
    code = "import time; print(flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code, "monitor.py", *options], stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def totals() -> tuple[float, float]:
    return capacity.total("CPU"), capacity.total("GPU")


GPU = {"max_workers": 4, "resources": {"CPU": 8, "GPU": 1}}
HEAD = {"max_workers": 0, "resources": {"CPU": 2}}


def test_what_the_autoscaler_may_start_counts(ray_session: None, tmp_path: Path) -> None:
    assert totals() == (2, 0)
    with autoscaler(tmp_path, {"head": HEAD, "gpu": GPU}, max_workers=10):
        assert totals() == (2 + 4 * 8, 4)
    with autoscaler(tmp_path, {"head": HEAD, "gpu": GPU}, max_workers=3):
        assert totals() == (2 + 3 * 8, 3)
    big = {"max_workers": 1, "resources": {"CPU": 96, "GPU": 8}}
    with autoscaler(tmp_path, {"head": HEAD, "gpu": GPU, "big": big}, max_workers=2):
        assert totals() == (2 + 96 + 8, 9)


def test_the_autoscaler_of_another_ray_does_not_count(ray_session: None, tmp_path: Path) -> None:
    with autoscaler(tmp_path, {"head": HEAD, "gpu": GPU}, max_workers=10, address="10.0.0.1:6379"):
        assert totals() == (2, 0)


def test_an_autoscaler_with_a_damaged_config_does_not_count(ray_session: None, tmp_path: Path) -> None:
    with autoscaler(tmp_path, {"head": HEAD, "gpu": GPU}, max_workers=10):
        for text in ("[", "[]", "max_workers: 3"):
            (tmp_path / "autoscaling.yaml").write_text(text)
            assert totals() == (2, 0)


def test_machines_of_unknown_size_count_when_they_are_there(ray_session: None, tmp_path: Path) -> None:
    """On-premise files do not say what their machines have."""
    with autoscaler(tmp_path, {"head": {"max_workers": 3, "resources": {}}}, max_workers=3):
        assert totals() == (2, 0)


def test_on_kubernetes_the_operators_cluster_is_asked(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.kuberay import node_provider

    def container(**limits: str) -> dict[str, Any]:
        return {"template": {"spec": {"containers": [{"resources": {"limits": limits}}]}}, "rayStartParams": {}}

    head = container(cpu="2", memory="4Gi")
    gpus = container(cpu="8", memory="32Gi", **{"nvidia.com/gpu": "1"})
    gpus |= {"groupName": "gpus", "replicas": 0, "minReplicas": 0, "maxReplicas": 4}
    spec = {"enableInTreeAutoscaling": True, "headGroupSpec": head, "workerGroupSpecs": [gpus]}
    asked: list[str] = []

    def get(self: Any, path: str) -> dict[str, Any]:
        asked.append(path)
        return {"metadata": {"name": "team", "namespace": "vision"}, "spec": spec}

    (tmp_path / "namespace").write_text("vision")
    monkeypatch.setattr(capacity, "KUBERNETES", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "team")
    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", get)
    assert totals() == (2 + 4 * 8, 4)
    assert asked[0] == "rayclusters/team"
    spec["enableInTreeAutoscaling"] = False
    assert totals() == (2, 0)
    spec.pop("headGroupSpec")
    spec["enableInTreeAutoscaling"] = True
    with pytest.warns(UserWarning, match=r"which nodes the cluster 'team' may start \(KeyError"):
        assert totals() == (2, 0)


def test_a_gpu_that_is_asked_for_has_to_be_there() -> None:
    cpus = Cluster(nodes=1, resources=({"CPU": 4},), dashboard=None, logs=Path())
    gpus = Cluster(nodes=1, resources=({"CPU": 4}, {"CPU": 4, "GPU": 1}), dashboard=None, logs=Path())
    assert [choose_preset(None, cpus), choose_preset(None, gpus)] == ["laptop", "gpu"]
    assert [choose_preset("laptop", gpus), choose_preset("gpu", gpus)] == ["laptop", "gpu"]
    with pytest.raises(UserError, match="no GPU and cannot start one"):
        choose_preset("gpu", cpus)


def test_a_private_ray_is_private_and_knows_itself_beside_another_one(ray_session: None, tmp_path: Path) -> None:
    """As Ray Train asks from within an actor whether a trial is over. No other user can enter where its sockets are."""
    ask = """
import os, stat
from pathlib import Path
os.umask(0)
from raydelta.compute.cluster import ensure_ray, warm_up
logs = ensure_ray().logs
import ray
from ray.util.state import list_nodes
(node,) = ray.get(ray.remote(lambda: [node.node_id for node in list_nodes()]).remote())
assert node == ray.get_runtime_context().get_node_id()
folder = logs.parents[2]
assert folder.name == f"raydelta-{os.getuid()}", logs
assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, os.getuid())
assert (logs.parent / "sockets" / "raylet").is_socket()
ray.get(warm_up("raydelta.training.run"))
"""
    subprocess.run([sys.executable, "-c", ask], check=True, timeout=120)


def test_a_folder_that_somebody_else_has_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"raydelta-{os.getuid()}").symlink_to(elsewhere)
    folder = cluster.private_folder()
    assert folder.parent == tmp_path
    assert not folder.is_symlink()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / f"raydelta-{os.getuid()}").unlink()
    folder = cluster.private_folder()
    folder.chmod(0o777)
    assert cluster.private_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


LISTEN = """
import os, socket, sys
os.setuid(65534)
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
server.settimeout(float(sys.argv[1]))
try:
    while True:
        with server.accept()[0] as connection:
            connection.settimeout(2)
            print(connection.recv(100), flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""


@contextlib.contextmanager
def impostor(seconds: float = 60) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of another user on loopback: its address, and the process that prints what it was sent."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    command = [sys.executable, "-c", LISTEN, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"127.0.0.1:{process.stdout.readline().strip()}", process
    finally:
        process.kill()
        process.wait()


def test_the_token_is_not_sent_to_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was first on the port of a tunnel, or of a dashboard that is not up."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with impostor(5) as (address, process):
        assert credentials.listeners(address) == {65534}
        for ask in (remote.list_jobs, remote.check, lambda url: remote.stop(url, "job")):
            with pytest.raises(
                UserError, match=r"another user of this machine \(nobody\) answers there; the cluster's token"
            ):
                ask(f"http://{address}")
        assert process.stdout and process.stdout.read() == "nothing\n"


def test_a_running_ray_of_another_user_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = f"127.0.0.1:{server.getsockname()[1]}"
        file.write_text(own)
        assert cluster.running_address() == own
        with impostor() as (address, _):
            file.write_text(address)
            with pytest.warns(UserWarning, match=r"the Ray of another user \(nobody\), which is not joined"):
                assert cluster.running_address() is None
        file.write_text(own)
        os.chown(file, 65534, 65534)
        with pytest.warns(UserWarning, match="which is not joined"):
            assert cluster.running_address() is None
        file.rename(tmp_path / "real")
        file.symlink_to(tmp_path / "real")
        assert cluster.running_address() is None


def test_a_ray_that_does_not_start_in_time_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*arguments: object, **settings: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError, match="Ray did not start within its 30 seconds"):
        cluster._start_private({})


def test_a_trial_in_a_placement_group_of_its_own_may_ask_the_head(ray_session: None) -> None:
    """As the driver of a trial of several workers does on a node that is not the head."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"memory": 2**20}])
    within = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=0, memory=2**20, scheduling_strategy=within, max_calls=1)
    def ask() -> int:
        context = type(ray.get_runtime_context())
        with mock.patch.object(context, "get_node_id", lambda self: "another node"):
            return len(capacity.capacity())

    try:
        assert ray.get(ask.remote(), timeout=60) == 1
    finally:
        remove_placement_group(group)
