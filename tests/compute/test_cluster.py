import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydelta.compute.cluster import Cluster, capacity, choose_preset
from raydelta.errors import UserError


def write_config(home: Path, types: dict[str, Any], max_workers: int) -> None:
    tree = {"head_node_type": "head", "max_workers": max_workers, "available_node_types": types}
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def total(kind: str) -> float:
    return sum(node.get(kind, 0) for node in capacity())


GPU = {"max_workers": 4, "resources": {"CPU": 8, "GPU": 1}}
HEAD = {"max_workers": 0, "resources": {"CPU": 2}}


def test_what_the_autoscaler_may_start_counts(ray_session: None, home: Path) -> None:
    assert (total("CPU"), total("GPU")) == (2, 0)
    write_config(home, {"head": HEAD, "gpu": GPU}, max_workers=10)
    assert (total("CPU"), total("GPU")) == (2 + 4 * 8, 4)
    write_config(home, {"head": HEAD, "gpu": GPU}, max_workers=3)
    assert (total("CPU"), total("GPU")) == (2 + 3 * 8, 3)
    big = {"max_workers": 1, "resources": {"CPU": 96, "GPU": 8}}
    write_config(home, {"head": HEAD, "gpu": GPU, "big": big}, max_workers=2)
    assert (total("CPU"), total("GPU")) == (2 + 96 + 8, 9)


def test_machines_of_unknown_size_count_when_they_are_there(ray_session: None, home: Path) -> None:
    """On-premise files do not say what their machines have."""
    write_config(home, {"head": {"max_workers": 3, "resources": {}}}, max_workers=3)
    assert (total("CPU"), total("GPU")) == (2, 0)


def test_a_gpu_that_is_asked_for_has_to_be_there() -> None:
    cpus = Cluster(nodes=1, resources=({"CPU": 4},), dashboard=None, logs=Path())
    gpus = Cluster(nodes=1, resources=({"CPU": 4}, {"CPU": 4, "GPU": 1}), dashboard=None, logs=Path())
    assert [choose_preset(None, cpus), choose_preset(None, gpus)] == ["laptop", "gpu"]
    assert [choose_preset("laptop", gpus), choose_preset("gpu", gpus)] == ["laptop", "gpu"]
    with pytest.raises(UserError, match="no GPU and cannot start one"):
        choose_preset("gpu", cpus)


def test_a_private_ray_knows_itself_beside_another_one(ray_session: None) -> None:
    """As Ray Train asks from within an actor whether a trial is over."""
    ask = """
import ray
from raydelta.compute.cluster import ensure_ray
ensure_ray()
from ray.util.state import list_nodes
(node,) = ray.get(ray.remote(lambda: [node.node_id for node in list_nodes()]).remote())
assert node == ray.get_runtime_context().get_node_id()
"""
    subprocess.run([sys.executable, "-c", ask], check=True, timeout=120)
