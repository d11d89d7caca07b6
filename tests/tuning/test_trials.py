import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from raydelta.compute.cluster import Cluster
from raydelta.config import override
from raydelta.data.streams import Images
from raydelta.errors import UserError
from raydelta.search_space import Space
from raydelta.training.assemble import open_large_sets
from raydelta.training.job import make_job
from raydelta.training.on_ray import share
from raydelta.tuning import trials
from raydelta.tuning.trials import Trainer, last_line, trial_resources


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


def test_trials_take_the_gpus_and_resources_that_they_name() -> None:
    nodes = ({"CPU": 8}, *[{"CPU": 8, "GPU": 4, "accelerator_type:T4": 1}] * 2, {"CPU": 4, "GPU": 2, "nvme": 3})
    cluster = Cluster(nodes=1, resources=nodes, dashboard=None, logs=Path())

    def resources(**fields: object) -> tuple[dict[str, float], int]:
        return trial_resources(Space(resources=fields), cluster)  # type: ignore[arg-type]

    assert resources() == ({"CPU": 1, "GPU": 1.0}, 10)
    assert resources(accelerator_type="T4") == ({"CPU": 1, "GPU": 1.0, "accelerator_type:T4": 0.001}, 8)
    assert resources(custom={"nvme": 2}, workers=1) == ({"CPU": 1, "GPU": 1.0, "nvme": 2}, 1)
    with pytest.raises(
        UserError, match=r"a worker needs A100, and no node of the cluster has that; .* CPU, GPU, T4, nvme"
    ):
        resources(accelerator_type="A100")
    with pytest.raises(UserError, match=r"needs T4, nvme, and no node"):
        resources(accelerator_type="T4", custom={"nvme": 1})
    with pytest.raises(
        UserError, match=r"a trial needs 9 CPUs and 9 GPUs, but the cluster can give 16 CPUs and 8 GPUs"
    ):
        resources(accelerator_type="T4", workers=9)
    message = r"a trial has 2 workers that need 1 CPU, 1 GPU, 2 nvme each, and the nodes have room for 1"
    with pytest.raises(UserError, match=message):
        resources(custom={"nvme": 2}, workers=2)


def test_workers_that_no_set_of_nodes_has_room_for_are_refused() -> None:
    """The CPUs together would be enough; Ray would wait for ever."""
    cluster = Cluster(nodes=2, resources=({"CPU": 4}, {"CPU": 2}), dashboard=None, logs=Path())
    with pytest.raises(UserError, match=r"a trial has 2 workers that need 3 CPU each, and the nodes have room for 1"):
        trial_resources(Space(resources={"workers": 2, "cpus": 3}), cluster)  # type: ignore[arg-type]
    assert trial_resources(Space(resources={"cpus": 3}), cluster) == ({"CPU": 3, "GPU": 0.0}, 1)  # type: ignore[arg-type]


def test_a_trial_that_ray_has_killed_for_its_memory_says_so() -> None:
    error = ray.exceptions.OutOfMemoryError("Memory on the node was 15 of 16 GB.\nTo disable worker killing, set …")
    assert last_line(error).startswith("out of memory: its node had none left; run fewer trials at once")
    assert last_line(ValueError("first\nlast")) == "last"


def test_a_paused_trial_does_not_keep_others_from_its_training(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune keeps its process, in which it waits in a report for ever, or until the trial is to go on."""
    monkeypatch.setattr(trials, "PAUSED", 0.5)
    settings = {"compute.report_every": 1, "compute.checkpoint_every": 1, "expert.steps": 4}
    job = make_job("expert", override(trained["expert"].config, settings), tmp_path)
    large, resumed = open_large_sets(job), threading.Event()
    steps: dict[str, list[int]] = {"paused": [], "other": []}

    def report(metrics: dict[str, Any]) -> None:
        name = threading.current_thread().name
        steps[name].append(metrics["step"])
        if name == "paused" and metrics["step"] == 2:
            assert resumed.wait(60)

    monkeypatch.setattr("ray.tune.report", report)
    monkeypatch.setattr(trials, "record_training", lambda *arguments: None)

    def train() -> None:
        trials.tune_trial(job, large, {"CPU": 1})

    threads = {name: threading.Thread(target=train, name=name) for name in steps}
    threads["paused"].start()
    while not steps["paused"]:
        assert threads["paused"].is_alive()
        time.sleep(0.1)
    threads["other"].start()
    threads["other"].join(timeout=100)
    assert steps == {"paused": [1, 2], "other": [1, 2, 3, 4]}
    resumed.set()
    threads["paused"].join(timeout=30)
    assert steps["paused"] == [1, 2, 3, 4], "it takes the result"
    assert job.done
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_trials_of_several_workers_share_one_copy_of_the_sets(
    ray_session: None, trained: dict[str, Any], tmp_path: Path
) -> None:
    def stored() -> int:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        return int(get_memory_info_reply(state).store_stats.cumulative_created_bytes)

    def enlarge(images: Images) -> Images:
        """64 times as many, so that nothing else in the object store counts."""
        labels = None if images.labels is None else np.concatenate([images.labels] * 64)
        return replace(images, ids=images.ids * 64, pixels=np.concatenate([images.pixels] * 64), labels=labels)

    base = override(trained["expert"].config, {"compute.workers": 2, "translator.steps": 2})
    expert = trained["expert"].directory
    jobs = [make_job("translator", override(base, {"cycle.real": weight}), tmp_path, expert) for weight in (1, 2)]
    large = {name: enlarge(images) for name, images in open_large_sets(jobs[0]).items() if isinstance(images, Images)}
    size = sum(images.pixels.nbytes for images in large.values())
    before = stored()
    space = Space(resources={"workers": 2, "gpus": 0})  # type: ignore[arg-type]
    trainer = Trainer(base, expert, tmp_path, share(large), {"CPU": 1, "GPU": 0.0}, 1, space, "sweep")
    trainer.finish(jobs)
    assert all(job.done for job in jobs)
    assert size <= stored() - before < 1.6 * size
