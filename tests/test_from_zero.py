"""A cluster that is scaled to zero, of Ray's own autoscaler and made-up nodes with one made-up GPU each."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from raydelta.compute import credentials
from tests.compute.test_remote import write_home
from tests.tiny import kill_family

pytestmark = pytest.mark.timeout(300)

HEAD_ID = "f" * 51 + "00000"
EMPTY = [
    "file_mounts",
    "cluster_synced_files",
    "file_mounts_sync_continuously",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "rsync_exclude",
    "rsync_filter",
]

USE = """
import os
from raydelta.compute.cluster import choose_preset, ensure_ray
cluster = ensure_ray()
import ray
import ray.data
from raydelta.compute.tasks import actor_pool, run_remote
assert (cluster.nodes, cluster.gpus, cluster.cpus) == (1, 2, 3), cluster
assert choose_preset(None, cluster) == "gpu"
assert ray.cluster_resources().get("GPU", 0) == 0

def place():
    return ray.get_runtime_context().get_node_id(), len(ray.get_gpu_ids())

head = ray.get_runtime_context().get_node_id()
node, gpus = run_remote(place)
assert node != head and gpus == 1, "a task for a model starts a node with a GPU"

class Model:
    def __call__(self, batch):
        batch["gpus"] = [len(ray.get_gpu_ids())] * len(batch["item"])
        return batch

rows = ray.data.from_items(list(range(4))).map_batches(Model, batch_size=1, **actor_pool(2)).take_all()
assert [row["gpus"] for row in rows] == [1] * 4, rows
print("from zero")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What makes a command use a head that may start two nodes."""
    port, address = free_port(), ray.util.get_node_ip_address()
    kinds: dict[str, Any] = {
        "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    provider = {
        "type": "fake_multinode",
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "head_node_id": HEAD_ID,
        "gcs_address": f"{address}:{port}",
    }
    tree = {"cluster_name": "made-up", "max_workers": 2, "idle_timeout_minutes": 5, "provider": provider, "auth": {}}
    tree |= {"available_node_types": kinds, "head_node_type": "head", "upscaling_speed": 1.0, "docker": {}}
    tree |= {name: {} if name == "file_mounts" else [] for name in EMPTY} | {"file_mounts_sync_continuously": False}
    (tmp_path / "autoscaling.yaml").write_text(yaml.safe_dump(tree))
    session = Path(tempfile.mkdtemp(prefix="ray"))  # a short path, and not where other commands look for a running Ray
    settings = {
        "HOME": str(write_home(tmp_path / "home", "0" * 64)),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_TMPDIR": str(session),
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=1", "--object-store-memory=200000000", "--dashboard-port=0", "--disable-usage-stats"]
    command += [f"--temp-dir={session}", f"--autoscaling-config={tmp_path / 'autoscaling.yaml'}"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
    try:
        yield os.environ | settings | {"RAY_ADDRESS": f"{address}:{port}"}
    finally:
        kill_family(head)
        shutil.rmtree(session, ignore_errors=True)


def test_a_cluster_without_a_node_is_used_for_what_it_can_become(environment: dict[str, str], tmp_path: Path) -> None:
    host, _, port = environment["RAY_ADDRESS"].rpartition(":")
    deadline = time.monotonic() + 60
    while not credentials.listeners(f"{host}:{port}"):
        assert time.monotonic() < deadline, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, timeout=250)
    assert "from zero" in done.stdout, done.stdout + done.stderr + (tmp_path / "head.log").read_text()
