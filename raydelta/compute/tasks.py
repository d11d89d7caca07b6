"""Calls and actor pools on the Ray cluster, and errors as they were raised there."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from raydelta.compute.capacity import total
from raydelta.errors import TrainingError, UserError

if TYPE_CHECKING:
    from ray import ObjectRef

Result = TypeVar("Result")


def actor_pool(most: int) -> dict[str, Any]:
    """What ``map_batches`` takes for a pool of at most so many actors: one on every GPU, or else on every CPU.

    What the autoscaler may start counts too: it starts what the actors ask for.
    """
    from ray.data import ActorPoolStrategy

    # Ray Data's plans and warnings of progress bars would hide our progress.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus, cpus = int(total("GPU")), int(total("CPU"))
    return {
        # Two calls: while one computes, the other fetches and unpacks its batch. Ray Data computes them in one thread.
        "compute": ActorPoolStrategy(size=min(gpus or cpus or 1, most), max_concurrent_calls_per_actor=2),
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


def get_or_cause(reference: "ObjectRef") -> Any:
    """``ray.get``, but a task's own error comes out as it was raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None


def start_remote(function: Callable[..., Result], *arguments: object, gpus: float | None = None) -> "ObjectRef":
    """Start a function as a Ray task on one CPU; ``get_or_cause`` waits for what it returns.

    Args:
        gpus: GPUs that it reserves, or a share of one; None takes one where the cluster has any.
    """
    import ray

    if gpus is None:
        gpus = float(total("GPU") > 0)
    return ray.remote(num_cpus=1, num_gpus=gpus)(function).remote(*arguments)


def run_remote(function: Callable[..., Result], *arguments: object, gpus: float | None = None) -> Result:
    """``start_remote``, and wait for the result."""
    return get_or_cause(start_remote(function, *arguments, gpus=gpus))
