"""Calls and actor pools on the Ray cluster, and errors as they were raised there."""

import logging
from typing import Any

from raydelta.errors import TrainingError, UserError


def actor_pool(most: int) -> dict[str, Any]:
    """What ``map_batches`` takes for a pool of at most so many actors: one on every GPU, or else on every CPU."""
    import ray
    from ray.data import ActorPoolStrategy

    # Ray Data's plans and warnings of progress bars would hide our progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    return {
        "compute": ActorPoolStrategy(size=min(gpus or cpus, most)),
        "num_gpus": 1 if gpus else 0,
        "num_cpus": 0.5,  # half of the CPUs have to stay free for reading, or nothing ever starts
    }


def cause_of(error: BaseException) -> BaseException:
    """The user's or the training's own error behind what Ray wrapped around it, else the error itself."""
    from ray.exceptions import RayTaskError

    seen = [error]
    while seen:
        current = seen.pop()
        # A RayTaskError is an instance of its cause's class too, but prints as a traceback.
        if isinstance(current, UserError | TrainingError) and not isinstance(current, RayTaskError):
            return current
        inner = [current.__cause__, getattr(current, "cause", None)]
        inner += list(getattr(current, "worker_failures", {}).values())
        seen += [item for item in inner if isinstance(item, BaseException)]
    return error


def get_or_cause(reference: Any) -> Any:
    """``ray.get``, but a task's own error comes out as it was raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None


def run_remote(function: Any, *arguments: Any) -> Any:
    """Call a function on the cluster, on a GPU where there is one."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    return get_or_cause(ray.remote(num_cpus=1, num_gpus=gpus)(function).remote(*arguments))
