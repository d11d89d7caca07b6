"""The Ray cluster that a command runs on: the running one if there is one, else a private one on this machine."""

import importlib
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from raydelta.errors import UserError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use the environment as it is
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also the pace at which the controller takes reports
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us as KeyboardInterrupt
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
"""Ray's own knobs; what the user has set stays."""

TOKEN = Path("~/.ray/auth_token")


@dataclass(frozen=True)
class Cluster:
    """What there is to run on."""

    cpus: int
    gpus: int
    nodes: int
    dashboard: str | None
    logs: Path


def ensure_ray() -> Cluster:
    """Join the running cluster (``RAY_ADDRESS``, or one that ``ray start`` started here), or start a private one.

    Raises:
        UserError: ``RAY_ADDRESS`` is set but nothing answers there.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if TOKEN.expanduser().exists():  # Ray reads the mode when it is imported; a cluster that was started here has it on
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if not ray.is_initialized():
        # Ray says at every start that its token authentication is on; so do our docs.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
        address = os.environ.get("RAY_ADDRESS") or _running_here()
        if address and address.startswith("ray://"):
            raise UserError(f"RAY_ADDRESS = {address}: no Ray client addresses; run on a node of the cluster itself")
        if address and address != "auto" and not _listens(address):  # Ray itself would wait for minutes
            raise UserError(f"RAY_ADDRESS = {address}: nothing answers there; unset it to run on this machine alone")
        try:
            if address:
                context = ray.init(address, **quiet)
            else:
                context = ray.init("local", include_dashboard=True, **quiet)
                if TOKEN.expanduser().exists():
                    TOKEN.expanduser().chmod(0o600)  # Ray writes it readable for all
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"the Ray cluster at {address}" if address else "a private Ray on this machine"
            raise UserError(f"cannot use {where}: {error}") from error
        _dashboard[0] = getattr(context, "dashboard_url", None)
    resources = ray.cluster_resources()
    return Cluster(
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        dashboard=f"http://{_dashboard[0]}" if _dashboard[0] else None,
        logs=Path(ray._private.worker._global_node.get_logs_dir_path()),
    )


def warm_up() -> None:
    """Let a worker process import torch and the rest while the driver still prepares the data."""
    import ray

    def import_all() -> None:
        for name in ("raydelta.workers", "segmentation_models_pytorch"):
            importlib.import_module(name)

    ray.remote(num_cpus=1)(import_all).remote()


_dashboard: list[str | None] = [None]


def _running_here() -> str | None:
    """The address of the Ray that ``ray start`` runs on this machine, if it still listens.

    Ray leaves the file that names it behind when it is killed. A private Ray of another process is not in it.
    """
    from ray._private.utils import read_ray_address

    address = read_ray_address()
    return address if address and _listens(address) else None


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False
