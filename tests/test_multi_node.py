"""A cluster of two nodes with one processor each, on this machine: what needs two of them to be seen."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.compute.test_remote import write_home
from tests.tiny import TINY_ARGUMENTS

pytestmark = pytest.mark.timeout(900)

# In a process of its own: this one may have another Ray, and authentication is chosen when Ray is imported.
CLUSTER = """
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 200_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": True, "dashboard_port": 0})
cluster.add_node(**node, dashboard_agent_listen_port=0)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
input()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What makes a command use the two nodes."""
    home = write_home(tmp_path_factory.mktemp("home"), "0" * 64)
    settings = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    settings["RAY_raylet_start_wait_time_s"] = "180"  # on a machine with busy cores
    session = Path(tempfile.mkdtemp(prefix="ray"))  # not where other commands of this machine look for a running Ray
    settings["RAY_TMPDIR"] = str(session)
    log = tmp_path_factory.mktemp("log") / "cluster.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | settings,
        )
    assert process.stdout and process.stdin
    try:
        line = next((line for line in process.stdout if line.startswith("address")), None)
        assert line, log.read_text()
        yield os.environ | settings | {"RAY_ADDRESS": line.split()[1]}
    finally:
        process.stdin.close()
        process.wait(timeout=100)
        shutil.rmtree(session, ignore_errors=True)


def run(environment: dict[str, str], *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raydelta.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


@pytest.mark.slow
def test_a_training_is_on_both_nodes(environment: dict[str, str], tmp_path: Path) -> None:
    """Siblings: two workers on one node in tests/training, several nodes in tests/test_from_zero.py."""
    runs = tmp_path / "runs"
    result = run(environment, "train", "expert", "--runs", runs, *TINY_ARGUMENTS, "compute.workers=2")
    assert "2 nodes, 2 CPUs" in result.stderr
    expert = Path(result.stdout.strip())
    # Of one processor each, as the nodes have: they were on both.
    assert yaml.safe_load((expert / "checkpoint" / "config.yaml").read_text())["compute"]["workers"] == 2


@pytest.mark.slow
def test_a_sweep_on_both_nodes_takes_the_expert_that_is_there(environment: dict[str, str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run(environment, "train", "expert", "--runs", runs, *TINY_ARGUMENTS, "compute.workers=2")
    space = tmp_path / "space.yaml"
    search = {"guidance.weight": {"grid": [0.2, 0.6]}}
    space.write_text(
        yaml.safe_dump({"search": search, "trials": 1, "scheduler": "none", "table": {"methods": ["guided"]}})
    )
    swept = run(environment, "tune", space, "--runs", runs, *TINY_ARGUMENTS, "compute.workers=2")
    assert re.search(r"sweep +2 trainings", swept.stderr), swept.stderr
    assert "guided" in swept.stdout
    assert len(list(runs.glob("expert-*/stage.json"))) == 1, "the expert of the first command is the sweep's"


def test_the_doctor_compares_the_clocks(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "raydelta.cli.doctor.probes", "ray"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=100, env=environment)
    assert done.stdout, done.stderr
    (clock,) = json.loads(done.stdout.splitlines()[-1])["clocks"].values()
    assert abs(clock) < 1, "both nodes are this machine"


DRIVE = """
import ray
from ray.util.placement_group import placement_group, placement_group_table
from raydelta.compute.cluster import ensure_ray
from raydelta.tuning.trials import DRIVER
ensure_ray()
groups = []
for _ in range(4):  # one after the other: of those asked for at once Ray does not know yet how full a node is
    groups.append(placement_group([DRIVER]))
    ray.get(groups[-1].ready())
nodes = [*map(str, (list(placement_group_table(group)["bundles_to_node_id"].values()) for group in groups))]
print("nodes", sorted(map(nodes.count, set(nodes))))
"""


def test_what_drives_workers_spreads_over_the_nodes(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", DRIVE], capture_output=True, text=True, timeout=100, env=environment)
    assert "nodes [2, 2]" in done.stdout, done.stdout + done.stderr


def test_more_workers_than_both_nodes_have_are_refused(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ["train", "expert", "--runs", tmp_path, *TINY_ARGUMENTS, "compute.workers=4"]
    errors = run(environment, *arguments, expect=1).stderr
    assert "compute.workers = 4, but the cluster can give 2 CPUs at most; ask for fewer" in errors
