from pathlib import Path

import pytest
import ray

from raydelta.compute.cluster import Cluster
from raydelta.errors import UserError
from raydelta.search_space import Space
from raydelta.tuning.trials import last_line, trial_resources


def test_resources_say_what_is_missing() -> None:
    cpus = Cluster(nodes=1, resources=({"CPU": 4},), dashboard=None, logs=Path())
    gpus = Cluster(nodes=1, resources=({"CPU": 16, "GPU": 2},), dashboard=None, logs=Path())
    space = Space(search={}, resources={"cpus": 2})  # type: ignore[arg-type]
    assert trial_resources(space, cpus) == ({"CPU": 2, "GPU": 0.0}, 2)
    assert trial_resources(space, gpus) == ({"CPU": 2, "GPU": 1.0}, 2)
    packed = Space(search={}, resources={"gpus": 0.25})  # type: ignore[arg-type]
    assert trial_resources(packed, gpus) == ({"CPU": 1, "GPU": 0.25}, 8)
    with pytest.raises(UserError, match=r"0\.25 GPUs, but the cluster can give 4 CPUs and 0 GPUs at most"):
        trial_resources(packed, cpus)


def test_a_worker_that_fits_no_node_is_refused() -> None:
    """Ray would wait for such a node for ever."""
    cluster = Cluster(nodes=1, resources=({"CPU": 8}, *[{"CPU": 4, "GPU": 1}] * 4), dashboard=None, logs=Path())
    assert trial_resources(Space(resources={"workers": 4}), cluster) == ({"CPU": 1, "GPU": 1.0}, 1)  # type: ignore[arg-type]
    for resources in ({"cpus": 8}, {"cpus": 9, "gpus": 0}):
        with pytest.raises(UserError, match=r"on one node, and no node has that many"):
            trial_resources(Space(resources=resources), cluster)  # type: ignore[arg-type]


def test_a_trial_that_ray_has_killed_for_its_memory_says_so() -> None:
    error = ray.exceptions.OutOfMemoryError("Memory on the node was 15 of 16 GB.\nTo disable worker killing, set …")
    assert last_line(error).startswith("out of memory: its node had none left; run fewer trials at once")
    assert last_line(ValueError("first\nlast")) == "last"
