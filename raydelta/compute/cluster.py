"""The Ray cluster that a command runs on: a running one, or a private one on this machine."""

import contextlib
import importlib
import logging
import os
import socket
import stat
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydelta.compute.capacity import capacity
from raydelta.compute.credentials import TOKEN, listeners, make_token, name_of
from raydelta.errors import UserError

if TYPE_CHECKING:
    from ray import ObjectRef

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere,
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:1",  # ray start would report once that they are off
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use the environment as it is
    "RAY_idle_worker_killing_time_threshold_ms": "120000",  # by default 1 s, and each new one imports torch first
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also the pace at which the controller takes reports
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # runs of Ray Train stand on the dashboard
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us as KeyboardInterrupt
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
"""Settings of Ray; what the user has set is kept."""


@dataclass(frozen=True)
class Cluster:
    """Nodes and resources to run on, including those that the autoscaler may add."""

    nodes: int  # running now
    resources: tuple[dict[str, float], ...]  # of each node, including those that the autoscaler may start
    dashboard: str | None
    logs: Path

    @property
    def cpus(self) -> int:
        return int(sum(node.get("CPU", 0) for node in self.resources))

    @property
    def gpus(self) -> int:
        return int(sum(node.get("GPU", 0) for node in self.resources))


def set_defaults() -> None:
    """Set what the user has not set; call it before Ray is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if TOKEN.expanduser().exists():  # Ray reads the mode when it is imported; a cluster that was started here has it on
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def ensure_ray() -> Cluster:
    """Join the running cluster (``RAY_ADDRESS``, or one that ``ray start`` started here), or start a private one.

    Raises:
        UserError: ``RAY_ADDRESS`` is set but nothing answers there.
    """
    set_defaults()
    import ray

    if not ray.is_initialized():
        # Ray says at every start that its token authentication is on; so do our docs.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
        address = running_address()
        if address is None and os.environ.get("RAY_ADDRESS") == "auto":
            raise UserError("RAY_ADDRESS = auto: no Ray runs here that is yours; unset it to start a private one")
        if address and address.startswith("ray://"):
            raise UserError(f"RAY_ADDRESS = {address}: no Ray client addresses; run on a node of the cluster itself")
        if address and not _listens(address):  # Ray itself would wait for minutes
            raise UserError(f"RAY_ADDRESS = {address}: nothing answers there; unset it to run on this machine alone")
        try:
            if address:
                context = ray.init(address, **quiet)
            else:
                make_token()
                context = _start_private(quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if not address:
                raise UserError(f"cannot use a private Ray on this machine: {reason}") from error
            # Ray does not say that the token is wrong; if something listens there, that is the usual cause.
            hint = f"; is {TOKEN} the cluster's token, on every node?" if isinstance(error, ConnectionError) else ""
            raise UserError(f"cannot use the Ray cluster at {address}: {reason}{hint}") from error
        _dashboard[0] = getattr(context, "dashboard_url", None)
    return Cluster(
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        resources=tuple(capacity()),
        dashboard=f"http://{_dashboard[0]}" if _dashboard[0] else None,
        logs=Path(ray._private.worker._global_node.get_logs_dir_path()),
    )


def _start_private(settings: dict[str, Any]) -> Any:
    """Start a private Ray whose processes know its address.

    Ray Train's cleaner looks for it, and where another command runs a Ray it would find two and give up: the workers of
    a trial that was ended would keep their CPUs for ever.
    """
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    told = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    os.environ.update(told)  # inherited by all that starts now
    try:
        return ray.init("local", include_dashboard=True, _temp_dir=str(private_folder() / "ray"), **settings)
    except Exception as error:  # Ray raises no type of its own for it
        if "timed out during startup" in str(error):
            raise UserError("Ray did not start within its 30 seconds: the machine is busy; try again") from error
        raise
    finally:
        for name in told:
            del os.environ[name]


def choose_preset(preset: str | None, cluster: Cluster) -> str:
    """The preset that was asked for; else ``gpu`` where the cluster has one.

    Raises:
        UserError: ``gpu`` was asked for, and there is none.
    """
    if preset == "gpu" and not cluster.gpus:
        raise UserError("--preset gpu, but the cluster has no GPU and cannot start one; --preset laptop runs on CPUs")
    return preset or ("gpu" if cluster.gpus else "laptop")


def warm_up(*modules: str) -> "ObjectRef":
    """Let a worker process import what is slow to import while the driver prepares the data."""
    import ray

    def import_all() -> None:
        for name in modules:
            importlib.import_module(name)

    return ray.remote(num_cpus=1)(import_all).remote()


_dashboard: list[str | None] = [None]


def private_folder() -> Path:
    """A folder in the temporary directory that only this user can enter.

    Ray leaves its session directory and the sockets in it writable for all, so a private Ray has them in here. The name
    is short, as a socket's path may have 107 characters.

    Raises:
        UserError: it cannot be made.
    """
    system = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # elsewhere it is too long
    base = Path(os.environ.get("RAY_TMPDIR") or system or "/tmp")
    folder = base / f"raydelta-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # somebody else was first
            return Path(tempfile.mkdtemp(prefix="raydelta-", dir=base))
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; set TMPDIR to a folder that you own") from error
    return folder


def running_address() -> str | None:
    """The cluster that a command joins: ``RAY_ADDRESS``, or one that ``ray start`` runs on this machine; else None."""
    address = os.environ.get("RAY_ADDRESS")
    return address if address and address != "auto" else _running_here()


def _running_here() -> str | None:
    """The address of the Ray that ``ray start`` runs on this machine, if it still listens.

    Ray leaves the file that names it behind when it is killed, in a folder where every user of the machine can write.
    What another user wrote there, or listens there, is not followed: it would get the token. A private Ray of another
    process is not in the file.
    """
    from ray._common.utils import get_ray_address_file

    file = Path(get_ray_address_file(None))
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor) as opened:  # noqa: PTH123 - a descriptor
            owner, address = os.fstat(descriptor).st_uid, opened.read(200).strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not address or not _listens(address):
        return None
    users = listeners(address)
    if users == set():  # it has gone
        return None
    strangers = {owner, *(users or ())} - {os.getuid(), 0}
    if strangers:
        warnings.warn(
            f"{file}: names the Ray of another user ({name_of(min(strangers))}), which is not joined; "
            f"RAY_ADDRESS={address} joins it and gives it the token",
            stacklevel=2,
        )
        return None
    return address


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def node_leaves() -> bool:
    """Whether the node of this process is about to be taken away, as a spot instance after its notice."""
    import ray

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()
