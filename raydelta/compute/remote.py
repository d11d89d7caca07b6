"""Commands as Ray jobs on a cluster elsewhere: the tunnel to it, submitting, following and listing them.

A job runs on the cluster's head and outlives whoever submitted it. Its working directory is the package as it is here,
with the space and config files of the command, and nothing else: what is trained is the code at hand, and no data set,
run directory or secret leaves this machine with it.
"""

import contextlib
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

from raydelta.compute.asked import VARIABLE, addresses_of, check_named
from raydelta.compute.cluster import set_defaults
from raydelta.compute.credentials import TOKEN, refuse_impostor, token_header
from raydelta.config import BUILT_IN_SETS, Config, load_config
from raydelta.errors import UserError
from raydelta.progress import clock
from raydelta.search_space import open_space
from raydelta.storage.files import fingerprint, is_remote

DASHBOARD = "http://127.0.0.1:8265"
"""Where a Ray on this machine, or the tunnel of ``raydelta dashboard``, answers."""

TIMEOUT = 10.0  # seconds for an answer from the head
TUNNEL_TIMEOUT = 25.0  # seconds until the tunnel is open
RETRY = 5.0  # seconds between two attempts to connect again
LOST = 600.0  # seconds without a connection before a client stops following; the job does not notice
START_UP = 60.0  # seconds from the head's first answer until it takes jobs
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
GUARD = (
    "import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit('error: the cluster has Python ' + "
    "sys.version.split()[0] + ', raydelta needs 3.11 to 3.13; see setup_commands of the cluster file')"
)
"""What a job checks first: raydelta cannot be imported by every Python."""


class Unreachable(UserError):  # noqa: N818 - the cluster is, for now
    """The head gives no answer."""


def read_cluster_file(path: Path) -> dict[str, Any]:
    """A cluster file of ``ray up`` with Ray's defaults filled in.

    Raises:
        UserError: it is missing, no YAML, or not what Ray's schema allows; the message names the field.
    """
    set_defaults()
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable cluster file: {error}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("provider"), dict):
        raise UserError(f"{path}: not a cluster file of ray up: it has no provider")
    try:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Ray prints remarks
                config = prepare_config(tree)
        except Exception:  # what the schema says about a wrong type is clearer than where Ray trips over it
            validate_config(tree | {"cluster_synced_files": []})
            raise
        for node in config.get("available_node_types", {}).values():
            node.setdefault("resources", {})  # AWS knows what its machines have
        validate_config(config)
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "the top level"
        raise UserError(f"{path}: not a valid cluster file: {where}: {error.message}") from error
    except Exception as error:  # Ray has no kind of its own for it
        raise UserError(f"{path}: not a valid cluster file: {_one_line(error)}") from error
    return config


@contextlib.contextmanager
def reach(cluster_file: Path | None, address: str | None, port: int | None = None) -> Iterator[str]:
    """The address of a cluster's dashboard, through a tunnel that is open within if a cluster file is given.

    Args:
        port: of the tunnel on this machine; a free one if None.

    Raises:
        Unreachable: no answer within half a minute, or not from a Ray that goes with this one.
        UserError: a bad cluster file, a wrong token, another Ray.
    """
    if cluster_file is None:
        where = address or DASHBOARD
        check(where)
        yield where
        return
    read_cluster_file(cluster_file)
    port = port or _free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", str(cluster_file), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us
            env=os.environ | {"NO_COLOR": "1"},
        )
        try:
            deadline = time.monotonic() + TUNNEL_TIMEOUT
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    said = [line.strip() for line in output.read().splitlines() if line.strip()]
                    raise Unreachable(
                        f"{cluster_file}: no way to the head of this cluster; is it up (ray up {cluster_file})? "
                        + (f"Ray says: {' / '.join(said[-3:])}" if said else "")
                    )
                time.sleep(0.2)
            where = f"http://127.0.0.1:{port}"
            check(where)
            yield where
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait()


def hold_tunnel(cluster_file: Path) -> None:
    """Open a tunnel to the dashboard of a cluster, say where it is, and hold it until Ctrl-C or until it breaks.

    Raises:
        UserError: as ``reach``, or the connection was lost.
    """
    port = int(DASHBOARD.rpartition(":")[2])
    with reach(cluster_file, None, None if _listens(port) else port) as where:
        print(f"{where}  it asks for the token in {TOKEN}; Ctrl-C closes the tunnel", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(5)
                _get(where, "/api/version")


def check(address: str) -> None:
    """Check that a cluster answers, takes the token and runs the same Ray.

    Raises:
        Unreachable: nothing answers.
        UserError: it refuses the token, or runs another Ray.
    """
    set_defaults()
    import ray

    answer = _get(address, "/api/version")
    theirs = answer.get("ray_version") if isinstance(answer, dict) else None
    if theirs is None:
        raise Unreachable(f"{address}: no answer of a Ray dashboard")
    if theirs != ray.__version__:
        raise UserError(
            f"{address} runs Ray {theirs}, and here is {ray.__version__}; install the same on both: "
            f"pip install 'ray[default]=={theirs}' here, or ray up again"
        )


def tune_on_cluster(
    space: str,
    overrides: Sequence[str],
    preset: str | None,
    config: str | Path | None,
    runs: str | None,
    resume: bool,
    cluster_file: Path | None,
    address: str | None,
) -> int:
    """Run ``raydelta tune`` as a job on a cluster and follow it to its end; follow it again if it already runs there.

    Args:
        space: name or file of a search space; a file is sent along, like the config file.
        runs: None takes ``metadata.runs`` of the cluster file.
        address: of the dashboard, if there is no cluster file.

    Returns:
        the exit code: 0 if the job succeeded or was left to itself.

    Raises:
        UserError: bad input, or a cluster that cannot be reached or runs another version.
    """
    opened, fields = open_space(space, overrides)
    settings = load_config(preset or "laptop", config, opened.config | fields)
    check_named(settings, fields)
    _check_data(settings)
    metadata = (read_cluster_file(cluster_file).get("metadata") or {}) if cluster_file else {}
    where = str(runs or metadata.get("runs") or "runs")
    if not is_remote(where) and not Path(where).is_absolute():
        raise UserError(
            f"--runs {where}: on a cluster it has to be an absolute path on storage that all its nodes share, or a "
            "bucket (s3://bucket/runs); a cluster file can name either as metadata.runs"
        )
    arguments = [*overrides, *(["--preset", preset] if preset else []), "--runs", where]
    with reach(cluster_file, address) as url:
        name, new = _submit(url, arguments, space, config, resume, addresses_of(settings).values())
    verb = "submitted" if new else "runs already:"
    sys.stderr.write(f"{verb} {name}  runs {where}\nCtrl-C leaves it running\n\n")
    return follow(name, cluster_file, address)


def _submit(
    address: str, arguments: Sequence[str], space: str, config: str | Path | None, resume: bool, asked: Iterable[str]
) -> tuple[str, bool]:
    """The id of the job with this command, and whether it is new; ``asked``: addresses that it may open."""
    with tempfile.TemporaryDirectory(prefix="raydelta-") as folder:
        tree = Path(folder)
        command = ["tune", _take_along(space, tree / "space"), *arguments]
        if config is not None:
            command += ["--config", str(config) if is_remote(config) else _take_along(str(config), tree / "config")]
        files = {str(file.relative_to(tree)): file.read_text() for file in tree.rglob("*") if file.is_file()}
        stem = f"tune-{re.sub(r'[^A-Za-z0-9_-]', '-', Path(space).stem)}-{fingerprint([command, files])}"
        attempts = [job for job in list_jobs(address) if job["submission_id"].rpartition(".")[0] == stem]
        for job in attempts:
            if job["status"] not in ENDED:
                return job["submission_id"], False
        shutil.copytree(
            Path(__file__).parents[1], tree / "raydelta", ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
        name = f"{stem}.{len(attempts) + 1}"
        _send(address, name, command + ["--resume"] * resume, tree, {VARIABLE: "\n".join(asked)})
    return name, True


def _check_data(config: Config) -> None:
    for name, address in (("synthetic", config.data.synthetic), ("real", config.data.real)):
        if address not in BUILT_IN_SETS and not is_remote(address) and not Path(address).is_absolute():
            raise UserError(
                f"data.{name} = {address!r}: the cluster reads it, so give an address (s3://…) or an absolute path"
            )


def _send(address: str, name: str, command: Sequence[str], tree: Path, environment: Mapping[str, str]) -> None:
    from ray.job_submission import JobSubmissionClient

    entrypoint = f"python -c {shlex.quote(GUARD)} && exec python -m raydelta.cli {shlex.join(command)}"
    runtime = {"working_dir": str(tree), "env_vars": {"PYTHONUNBUFFERED": "1", **environment}}
    shown = f"raydelta {shlex.join(command)}"
    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    deadline = time.monotonic() + START_UP
    while True:
        _token_for(address)
        try:
            JobSubmissionClient(address).submit_job(
                entrypoint=entrypoint, submission_id=name, runtime_env=runtime, metadata={"command": shown}
            )
            return
        except Exception as error:  # RuntimeError, ConnectionError, AuthenticationError, ValueError: all from Ray
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise UserError(f"{address}: the cluster did not take the job: {_one_line(error)}") from error
            sys.stderr.write("the head has just started and takes no jobs yet; trying again\n")
            time.sleep(3)


def follow(name: str, cluster_file: Path | None, address: str | None) -> int:
    """Print a job's output as it comes until the job ends. Returns 0 if it succeeded, else 1.

    A lost connection (a closed lid) is opened again. Ctrl-C leaves the job running and returns 0.

    Raises:
        UserError: there is no such job, no way to the cluster, or none any more for ten minutes.
    """
    seen, last = 0, None  # characters printed, and when there was an answer
    try:
        while True:
            try:
                with reach(cluster_file, address) as where:
                    while True:
                        job = _get(where, _path(name))
                        text = _get(where, f"{_path(name)}/logs").get("logs") or ""
                        last = time.monotonic()
                        sys.stdout.write(text[seen:])
                        sys.stdout.flush()
                        seen = max(seen, len(text))
                        if job["status"] in ENDED:
                            return _ended(name, job)
                        time.sleep(1 + len(text) / 200_000)  # every answer holds the whole of it
            except Unreachable as error:
                if last is None or time.monotonic() - last > LOST:
                    raise
                sys.stderr.write(f"\nconnection lost, the job does not need it; trying again ({error})\n")
                time.sleep(RETRY)
    except KeyboardInterrupt:
        place = f" --cluster {cluster_file}" if cluster_file else f" --address {address}" if address else ""
        again = f"raydelta jobs {name}{place}"
        sys.stderr.write(f"\nleft {name}, which goes on\nfollow it again: {again}\nstop it: {again} --stop\n")
        return 0


def _ended(name: str, job: dict[str, Any]) -> int:
    if job["status"] == "SUCCEEDED":
        return 0
    reason = (job.get("message") or "").strip().splitlines()
    sys.stderr.write(f"\n{name} {job['status'].lower()}{': ' + reason[0] if reason else ''}\n")
    return 1


def list_jobs(address: str) -> list[dict[str, Any]]:
    """The submitted jobs of a cluster as Ray describes them, newest first.

    Raises:
        UserError: it gives no answer, or refuses the token.
    """
    jobs = [job for job in _get(address, "/api/jobs/") if job.get("submission_id")]
    return sorted(jobs, key=lambda job: job.get("start_time") or 0, reverse=True)


def stop(address: str, name: str) -> None:
    """End a job; finished stages stay.

    Raises:
        UserError: there is no such job.
    """
    _request("POST", address, f"{_path(name)}/stop")


def _path(name: str) -> str:
    return f"/api/jobs/{quote(name, safe='')}"


def format_jobs(jobs: Sequence[dict[str, Any]], now: datetime | None = None) -> str:
    """One line for each job: id, state, how long it ran or has been running, command."""
    now = now or datetime.now(UTC)
    rows = [("id", "state", "age", "took", "command")]
    for job in jobs:
        start, end = job.get("start_time") or 0, job.get("end_time")
        begun = now.timestamp() * 1000 - start
        took = (end - start) if end else begun
        command = (job.get("metadata") or {}).get("command") or job["entrypoint"]
        row = (job["submission_id"], job["status"].lower(), clock(begun / 1000), clock(took / 1000), command)
        rows.append(row if start else (*row[:2], "", "", command))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return "\n".join(lines) if jobs else "no job was submitted to this cluster"


def _take_along(name: str, folder: Path) -> str:
    """Copy a file to the folder that is sent to the cluster; the name of a shipped space is returned as it is."""
    if not Path(name).is_file():
        return name
    folder.mkdir()
    shutil.copy(name, folder / Path(name).name)
    return f"{folder.name}/{Path(name).name}"


def _token_for(address: str) -> dict[str, str]:
    """The header with the token, unless another user of this machine answers at the address."""
    header, where = token_header(), urlsplit(address)
    try:
        port = where.port or (443 if where.scheme == "https" else 80)
    except ValueError:  # requests says it better
        return {}
    if header and where.hostname:
        try:
            refuse_impostor(f"{where.hostname}:{port}")
        except ConnectionRefusedError as error:
            raise _silent(address) from error
    return header


def _silent(address: str) -> Unreachable:
    return Unreachable(
        f"{address}: nothing answers there within {TIMEOUT:g} s; is the cluster up, and the tunnel open "
        "(raydelta dashboard)?"
    )


def _get(address: str, path: str) -> Any:
    return _request("GET", address, path)


def _request(method: str, address: str, path: str) -> Any:
    """Ray's own client has no time limit, and a head that is gone may keep a connection open for ever."""
    import requests

    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: expected something like {DASHBOARD}")
    header = _token_for(address)
    try:
        answer = requests.request(
            method, address.rstrip("/") + path, headers=header, timeout=TIMEOUT, allow_redirects=False
        )
    except requests.exceptions.RequestException as error:
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema | ValueError):
            raise UserError(f"--address {address}: expected something like {DASHBOARD}") from error
        raise _silent(address) from error
    if answer.status_code in (401, 403):
        problem = "asks for a token" if answer.status_code == 401 else "refuses the token"
        raise UserError(
            f"{address} {problem}: put the cluster's into ~/.ray/auth_token (the head has it at the same path)"
        )
    if answer.status_code == 404:
        raise UserError(
            f"{address} knows no {path.removeprefix('/api/')}; raydelta jobs lists what there is. A head that was "
            "started again forgets its jobs: the same command with --resume goes on"
        )
    try:
        answer.raise_for_status()
        return answer.json()
    except requests.exceptions.RequestException as error:
        raise Unreachable(f"{address}: no answer of a Ray dashboard: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False
