"""What the cluster can become: its nodes, and those that its autoscaler may start."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

HEAD = "node:__internal_head__"
"""A resource of the head node alone."""

KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def capacity() -> list[dict[str, float]]:
    """The resources of every node: of those that run, or of all that the autoscaler may start beside the head."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive]
    here = ray.get_runtime_context().get_node_id()
    address = ray.get_runtime_context().gcs_address
    if any(node["NodeID"] == here and HEAD in node["Resources"] for node in alive):
        config = read_autoscaler_config(address)
    else:
        # By the default strategy: a trial's own placement group has no room on the head.
        read = ray.remote(num_cpus=0, resources={HEAD: 0.001}, scheduling_strategy="DEFAULT")(read_autoscaler_config)
        config = ray.get(read.remote(address))
    if config is None:
        return nodes
    added = [
        kind["resources"]
        for name, kind in config["available_node_types"].items()
        for _ in range(kind.get("max_workers", 0))
        if name != config["head_node_type"] and kind["resources"]
    ]
    added.sort(key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), reverse=True)
    possible = [node for node in nodes if HEAD in node] + added[: config["max_workers"]]
    return possible if len(possible) > len(nodes) else nodes


def total(kind: str) -> float:
    """How much of a resource (``CPU``, ``GPU``) the cluster can have."""
    return sum(node.get(kind, 0) for node in capacity())


def workers_per_node(nodes: Iterable[Mapping[str, float]], each: Mapping[str, float]) -> list[int]:
    """How many workers fit on every node.

    Args:
        nodes: the resources of each.
        each: what a worker reserves; something, at least.
    """
    needs = {kind: amount for kind, amount in each.items() if amount}
    return [int(min(node.get(kind, 0) / amount for kind, amount in needs.items()) + 1e-9) for node in nodes]


def read_autoscaler_config(address: str) -> dict[str, Any] | None:
    """On the head: the config that the autoscaler of the Ray at an address works by; None without one.

    The autoscaler that ``ray up`` or ``ray start`` started has it as an option; KubeRay keeps it in Kubernetes.
    """
    for command in _commands():
        options = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
        if options.get("--gcs-address") == address and "--autoscaling-config" in options:
            try:
                tree = yaml.safe_load(Path(options["--autoscaling-config"]).expanduser().read_text())
            except (OSError, yaml.YAMLError):
                continue
            if isinstance(tree, dict) and {"available_node_types", "head_node_type", "max_workers"} <= tree.keys():
                return tree
    return _read_kubernetes()


def _commands() -> Iterator[list[str]]:
    """The command lines of this user's and root's autoscalers on this machine."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if process.stat().st_uid in (os.getuid(), 0) and any(word.endswith("monitor.py") for word in words):
                yield words
        except OSError:  # it has ended
            continue


def _read_kubernetes() -> dict[str, Any] | None:
    """What KubeRay's autoscaler works by, in the head's pod, which may read it."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if name is None or not KUBERNETES.exists():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        cluster = KubernetesHttpApiClient(KUBERNETES.read_text().strip()).get(f"rayclusters/{name}")
        if not cluster["spec"].get("enableInTreeAutoscaling"):
            return None
        return _derive_autoscaling_config_from_ray_cr(cluster)
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"Kubernetes does not say which nodes the cluster {name!r} may start ({type(error).__name__}: {reason}); "
            "only those that run are counted",
            stacklevel=2,
        )
        return None
