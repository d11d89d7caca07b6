"""Jobs on a cluster: everything a user can get wrong, and one job followed, left, found again and stopped."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from raydelta.compute import remote
from raydelta.errors import UserError
from tests.tiny import TINY_ARGUMENTS, kill_family

COMMAND = [sys.executable, "-m", "raydelta.cli"]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SOON = 30.0  # seconds within which bad input is answered


def run(*arguments: object, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=400, env=os.environ | environment
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def refused(*arguments: object, **environment: str) -> str:
    """The message of a command that ends with one, soon."""
    start = time.monotonic()
    errors = run(*arguments, expect=1, **environment).stderr
    assert "Traceback" not in errors
    assert time.monotonic() - start < SOON + 10, "a machine with busy cores starts Python in up to ten seconds"
    return errors


def write_home(folder: Path, token: str) -> Path:
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").write_text(token)
    (folder / ".ray" / "auth_token").chmod(0o600)
    return folder


def free_port() -> int:
    """A port that Ray does not hand out to its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] > 20000:
                return probe.getsockname()[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("home"), "0" * 64)


@pytest.fixture(scope="module")
def addresses(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Dashboard and address of a real Ray head on this machine, token authentication on."""
    session = Path(tempfile.mkdtemp(prefix="ray"))  # sockets below it: their paths must be short
    port = free_port()
    log = tmp_path_factory.mktemp("head") / "ray.log"
    start = [*RAY, "start", "--head", "--block", "--num-cpus=2", "--port=0", f"--temp-dir={session}"]
    # Without a port of its own, the agent that starts jobs would collide with that of any other Ray here.
    start += [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
    settings = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_raylet_start_wait_time_s": "180"}
    # A job's python is the one on the PATH of whoever started Ray.
    settings["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("w") as output:
        process = subprocess.Popen(
            start, stdout=output, stderr=output, start_new_session=True, env=os.environ | settings
        )
    try:
        deadline = time.monotonic() + 200
        while "runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        found = re.search(r"--address='([^']+)'", log.read_text())
        assert found
        yield f"http://127.0.0.1:{port}", found.group(1)
    finally:
        kill_family(process)
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="module")
def head(addresses: tuple[str, str]) -> str:
    """Its dashboard."""
    return addresses[0]


@contextlib.contextmanager
def serving(answer: Callable[[str], tuple[int, bytes]], port: int = 0) -> Iterator[str]:
    """A server that answers what a function of the path says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


LOCAL = {
    "cluster_name": "tests",
    "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
    "auth": {"ssh_user": "nobody"},
    "metadata": {"runs": "/shared/runs"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_wokers": 3}, "'max_wokers' was unexpected"),
        ({"max_workers": "three"}, "max_workers: 'three' is not of type 'integer'"),
        ({"provider": {"type": "local", "head_ip": "127.0.0.1"}}, "worker_ips"),
        ({"provider": {"typ": "aws"}}, "not a valid cluster file"),
        ({"provider": {"type": "aqs"}}, "aqs"),
        ({"auth": {"ssh_usr": "x"}}, "auth: Additional properties are not allowed ('ssh_usr' was unexpected)"),
        ({"provider": None}, "it has no provider"),
    ],
)
def test_a_typo_in_a_cluster_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(LOCAL | change))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        remote.read_cluster_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", [": :", "", "[1]", "\x00"])
def test_a_cluster_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(UserError, match=r"cluster\.yaml"):
        remote.read_cluster_file(tmp_path / "cluster.yaml")
    with pytest.raises(UserError, match="nowhere"):
        remote.read_cluster_file(tmp_path / "nowhere.yaml")


def test_a_typo_is_one_message_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(LOCAL | {"max_wokers": 3}))
    for command in (["tune", "--cluster", file], ["jobs", "--cluster", file], ["dashboard", file]):
        assert "'max_wokers' was unexpected" in refused(*command)


def test_a_cluster_that_is_not_up_is_named(tmp_path: Path) -> None:
    """The tunnel's ssh is refused: nobody may log in here."""
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(LOCAL))
    assert f"{file}: no way to the head of this cluster; is it up (ray up {file})?" in refused(
        "jobs", "--cluster", file
    )


def test_a_head_that_is_down_is_named(home: Path) -> None:
    port = free_port()
    for command in (["tune", "--runs", "/shared/runs"], ["jobs"], ["jobs", "job.1"]):
        errors = refused(*command, "--address", f"http://127.0.0.1:{port}", HOME=str(home))
        assert f"http://127.0.0.1:{port}: nothing answers there" in errors


def test_a_head_that_takes_connections_and_says_nothing_is_named(home: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "nothing answers there within" in refused("jobs", "--address", address, HOME=str(home))


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://:x"])
def test_an_address_of_another_kind_is_named(address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError, match="expected something like"):
        remote.check(address)


@pytest.mark.parametrize(("status", "content"), [(200, b"<html>"), (500, b"oops"), (200, b"[]")])
def test_a_server_that_is_no_ray_is_named(
    status: int, content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with (
        serving(lambda path: (status, content)) as address,
        pytest.raises(UserError, match="no answer of a Ray dashboard"),
    ):
        remote.check(address)


def test_another_ray_is_named(home: Path) -> None:
    with serving(lambda path: (200, b'{"ray_version": "2.9.3"}')) as address:
        errors = refused("tune", "--address", address, "--runs", "/shared/runs", HOME=str(home))
    assert "runs Ray 2.9.3, and here is 2." in errors
    assert "ray[default]==2.9.3" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "runs"], "--runs runs: on a cluster it has to be an absolute path"),
        ([], "--runs runs: on a cluster it has to be an absolute path"),
        (["--runs", "/runs", "--real", "photos"], "data.real = 'photos': the cluster reads it"),
        (["--runs", "/runs", "nonsense"], "search space 'nonsense'"),
        (["--runs", "/runs", "guidance.wieght=1"], "unknown field 'guidance.wieght'"),
        (["--runs", "/runs", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_the_cluster_could_not_do_is_said_before_it_is_asked(arguments: list[str], message: str) -> None:
    assert message in refused("tune", "--address", "http://127.0.0.1:1", *arguments)


def test_a_wrong_token_and_none_are_named(head: str, tmp_path: Path) -> None:
    wrong = write_home(tmp_path / "wrong", "1" * 64)
    for command in (["tune", "--runs", "/shared/runs"], ["jobs"]):
        errors = refused(*command, "--address", head, HOME=str(wrong))
        assert f"{head} refuses the token: put the cluster's into ~/.ray/auth_token" in errors
        assert "1" * 64 not in errors
    assert f"{head} asks for a token" in refused("jobs", "--address", head, RAY_AUTH_MODE="disabled")
    (tmp_path / "none").mkdir()
    errors = refused("jobs", "--address", head, HOME=str(tmp_path / "none"))
    assert "~/.ray/auth_token: the cluster's token cannot be read" in errors


def test_joining_with_a_wrong_token_or_another_python_is_named(
    addresses: tuple[str, str], home: Path, tmp_path: Path
) -> None:
    wrong = write_home(tmp_path / "wrong", "1" * 64)
    errors = refused("train", "expert", HOME=str(wrong), RAY_ADDRESS=addresses[1])
    assert f"cannot use the Ray cluster at {addresses[1]}" in errors
    assert "is ~/.ray/auth_token the cluster's token, on every node?" in errors

    other = (
        "import ray._private.utils as u; v = u.compute_version_info(); u.compute_version_info = lambda: (v[0], '3.9.1')"
    )
    command = [sys.executable, "-c", f"{other}; from raydelta.cli import main; main()", "train", "expert"]
    environment = os.environ | {"HOME": str(home), "RAY_ADDRESS": addresses[1], "RAY_AUTH_MODE": "token"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=SOON + 10, env=environment)
    assert result.returncode == 1
    assert re.search(
        r"cannot use the Ray cluster .* Python: 3\.\d+\.\d+ This process .* Python: 3\.9\.1", result.stderr
    )
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("version", "refused"), [((3, 10, 9), True), ((3, 12, 0), False), ((3, 14, 0), True)])
def test_a_job_says_so_where_the_clusters_python_is_not_for_us(version: tuple[int, ...], refused: bool) -> None:
    text = ".".join(map(str, version))
    code = f"import sys; sys.version_info = {version}; sys.version = '{text} (main)'; {remote.GUARD}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == refused
    assert (f"the cluster has Python {text}, raydelta needs 3.11 to 3.13" in result.stderr) == refused


def test_a_job_that_is_not_there_is_named(head: str, home: Path) -> None:
    for command in (["jobs", "nothing"], ["jobs", "nothing", "--stop"]):
        assert "knows no jobs/nothing" in refused(*command, "--address", head, HOME=str(home))
    assert "--stop: name the job" in refused("jobs", "--stop")


def test_more_workers_than_the_cluster_has_is_said_at_once(head: str, home: Path, tmp_path: Path) -> None:
    space = tmp_path / "wide.yaml"
    space.write_text(yaml.safe_dump({"resources": {"workers": 7, "gpus": 0}}))
    arguments = ["tune", space, "--address", head, "--runs", tmp_path / "runs", *TINY_ARGUMENTS]
    result = run(*arguments, expect=1, HOME=str(home))
    assert "a trial needs 7 CPUs and 0 GPUs, but the cluster can give 2 CPUs and 0 GPUs at most" in result.stdout
    assert "failed" in result.stderr


def submit(head: str, home: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``raydelta tune`` as a job, by Ray's own command, with a folder that goes along."""
    command = ["job", "submit", "--address", head, "--working-dir", str(folder), "--", "raydelta", "tune"]
    return subprocess.run(
        [*RAY, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"HOME": str(home), "RAY_AUTH_MODE": "token"},
    )


def test_a_job_by_hand_is_on_the_cluster_and_keeps_its_runs(head: str, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "along"
    folder.mkdir()
    (folder / "wide.yaml").write_text(yaml.safe_dump({"resources": {"workers": 7, "gpus": 0}}))
    lost = submit(head, home, folder, "wide.yaml", *TINY_ARGUMENTS)
    assert lost.returncode == 1
    assert re.search(r"--runs \S+/runs: it would be in the folder of this job, which Ray deletes", lost.stdout)
    refused = submit(head, home, folder, "wide.yaml", "--runs", tmp_path / "runs", *TINY_ARGUMENTS)
    assert refused.returncode == 1
    assert "a trial needs 7 CPUs and 0 GPUs, but the cluster can give 2 CPUs and 0 GPUs at most" in refused.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_sweep_as_a_job_by_hand(head: str, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "along"
    folder.mkdir()
    space = {"search": {"guidance.weight": {"grid": [0.2]}}, "trials": 1, "scheduler": "none"}
    (folder / "space.yaml").write_text(yaml.safe_dump(space | {"table": {"methods": ["guided"]}}))
    done = submit(head, home, folder, "space.yaml", "--runs", tmp_path / "runs", *TINY_ARGUMENTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 node, 2 CPUs" in done.stdout
    assert list((tmp_path / "runs").glob("tune-*/table.json"))


@pytest.mark.timeout(900)
def test_a_job_is_followed_left_found_again_and_stopped(head: str, home: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"search": {"guidance.weight": {"grid": [0.2]}}, "trials": 1, "scheduler": "none"}))
    # So long that it is still running whenever we look.
    arguments = ["tune", space, "--address", head, "--runs", tmp_path / "runs", *TINY_ARGUMENTS, "expert.steps=100000"]

    def follow_until(text: str) -> str:
        """Follow until the output holds a text, then press Ctrl-C; all that was printed."""
        log = tmp_path / "client.log"
        with log.open("w") as output:
            client = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"HOME": str(home)},
                # A shell starts background jobs, and with them these tests, deaf to it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        deadline = time.monotonic() + 200
        while text not in log.read_text():
            assert client.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        os.killpg(client.pid, signal.SIGINT)
        assert client.wait(timeout=30) == 0, log.read_text()
        return log.read_text()

    first = follow_until("preset laptop")
    submitted = re.search(r"submitted (\S+)", first)
    assert submitted, first
    job = submitted.group(1)
    assert job.startswith("tune-space-")
    assert f"follow it again: raydelta jobs {job} --address {head}" in first

    listed = run("jobs", "--address", head, HOME=str(home)).stdout
    assert re.search(rf"{job} +running +\d+:\d\d", listed), listed
    assert "raydelta tune space/space.yaml" in listed

    second = follow_until("preset laptop")
    assert f"runs already: {job}" in second

    assert f"stopped {job}" in run("jobs", job, "--stop", "--address", head, HOME=str(home)).stdout
    ended = run("jobs", job, "--address", head, expect=1, HOME=str(home))
    assert "stopped" in ended.stderr
    assert "raydelta 0" in ended.stdout, "its output can be read after its end"

    token = (home / ".ray" / "auth_token").read_text()
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes()
    assert token not in first + second + ended.stdout


def test_a_lost_connection_is_opened_again_and_nothing_is_printed_twice(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(remote, "RETRY", 0.1)
    job = {"status": "RUNNING"}
    logs = {"logs": "one\n"}
    printed = {"out": "", "err": ""}

    def answer(path: str) -> tuple[int, bytes]:
        tree = {"/api/version": {"ray_version": ray.__version__}, "/api/jobs/a.1": job, "/api/jobs/a.1/logs": logs}
        return 200, json.dumps(tree[path]).encode()

    def wait_for(stream: str, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in printed[stream]:
            assert time.monotonic() < deadline, printed
            time.sleep(0.1)
            new = capsys.readouterr()
            printed["out"] += new.out
            printed["err"] += new.err

    codes: list[int] = []
    with serving(answer) as address:
        client = threading.Thread(target=lambda: codes.append(remote.follow("a.1", None, address)))
        client.start()
        wait_for("out", "one")
    wait_for("err", "connection lost, the job does not need it")
    job["status"], logs["logs"] = "SUCCEEDED", "one\ntwo\n"
    with serving(answer, int(address.rpartition(":")[2])):
        wait_for("out", "two")
        client.join(timeout=30)
    assert codes == [0]
    assert printed["out"] == "one\ntwo\n"


def test_the_list_shows_state_age_and_command() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    start = int(now.timestamp() * 1000) - 3_723_000
    jobs_ = [
        {"submission_id": "a.1", "status": "RUNNING", "start_time": start, "metadata": {"command": "raydelta tune"}},
        {"submission_id": "b", "status": "FAILED", "start_time": start, "end_time": start + 61_000, "entrypoint": "ls"},
        {"submission_id": "c", "status": "PENDING", "start_time": None, "entrypoint": "pwd"},
    ]
    lines = remote.format_jobs(jobs_, now).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a.1", "running", "1:02:03", "1:02:03", "raydelta", "tune"],
        ["b", "failed", "1:02:03", "1:01", "ls"],
        ["c", "pending", "pwd"],
    ]
    assert "no job" in remote.format_jobs([])
