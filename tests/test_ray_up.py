"""The on-premise cluster for real: ray up over ssh on three hosts, a sweep across them, ray down.

The hosts are network, process, mount and name spaces of this machine on a bridge, each with its own sshd, home and Ray
session, and no folder in common. Data sets and runs lie on an S3-compatible server on the bridge. That takes root,
iproute2 and an OpenSSH server. Where they lack, the tests are skipped, and the end of the output says so.
"""

import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from raydelta.compute.remote import read_cluster_file
from raydelta.data.simulator.dataset import simulate_dataset
from tests.tiny import TINY_ARGUMENTS

ROOT = Path(__file__).parent.parent
NET = f"10.231.{os.getpid() % 250}"
GATEWAY = f"{NET}.1"
IPS = [f"{NET}.{10 + number}" for number in range(3)]
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
PORT = 18333  # of the S3 server
RUNS = "s3://runs/all"
TOKEN = "ab" * 32

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HOST = """
set -e
mount --make-rprivate /
mkdir -p /tmp/ray /run/sshd
mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/home /mnt
mount --bind {folder}/passwd /etc/passwd
mount -t proc proc /proc
hostname host{number}
exec {sshd} -D -e -f {folder}/sshd_config
"""

USERS = Path("/etc/passwd").read_text()

SSHD_CONFIG = """
ListenAddress {ip}
HostKey {keys}/host
AuthorizedKeysFile {keys}/laptop.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
PidFile none
"""


def missing() -> str | None:
    """What this machine lacks, if anything."""
    if os.geteuid() != 0:
        return "it takes root, to make network namespaces"
    for program in ("ip", "unshare", "rsync", "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"there is no {program} (packages iproute2, util-linux, rsync, openssh-client)"
    if not Path(SSHD).exists():
        return "there is no sshd (package openssh-server)"
    probe = subprocess.run(["ip", "link", "add", f"rdx{os.getpid()}", "type", "bridge"], capture_output=True, text=True)
    if probe.returncode:
        return f"no bridge can be made here: {probe.stderr.strip()}"
    sh("ip", "link", "delete", f"rdx{os.getpid()}")
    return None


def sh(*command: object, **more: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result


@dataclass(frozen=True)
class Laptop:
    """Whoever runs the commands: a home of its own, and a cluster file for the three hosts."""

    folder: Path
    cluster: Path
    environment: dict[str, str]

    def run(self, *command: object, timeout: float = 600, expect: int = 0) -> str:
        result = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env=self.environment,
        )
        assert result.returncode == expect, result.stdout
        return result.stdout

    def ray(self, *arguments: object) -> str:
        return self.run(sys.executable, "-m", "ray.scripts.scripts", *arguments)

    def raydelta(self, *arguments: object, expect: int = 0, timeout: float = 600) -> str:
        return self.run(sys.executable, "-m", "raydelta.cli", *arguments, expect=expect, timeout=timeout)

    @contextlib.contextmanager
    def dashboard(self) -> Iterator[str]:
        """Within, raydelta dashboard runs; Ctrl-C ends it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "raydelta.cli", "dashboard", str(self.cluster)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout
        line = process.stdout.readline()
        yield line.split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0

    def ssh(self, ip: str, command: str) -> str:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return self.run("ssh", *options, "-i", self.folder / "keys" / "laptop", f"root@{ip}", command)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with all that belongs to three hosts that take ssh connections."""
    reason = missing()
    if reason:
        pytest.skip(f"ray up was NOT tested on this machine: {reason}")
    folder = tmp_path_factory.mktemp("ray-up")
    keys = folder / "keys"
    keys.mkdir()
    for name in ("host", "laptop"):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name)
    tag = os.getpid()
    bridge = f"rdb{tag}"
    with contextlib.ExitStack() as undo:
        sh("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(sh, "ip", "link", "delete", bridge)
        sh("ip", "address", "add", f"{GATEWAY}/24", "dev", bridge)
        sh("ip", "link", "set", bridge, "up")
        for number, ip in enumerate(IPS):
            own, space, outer = folder / f"host{number}", f"rd{tag}-{number}", f"rdv{tag}{number}"
            for name in ("home", "ray"):
                (own / name).mkdir(parents=True)
            (own / "passwd").write_text(re.sub("^root:.*", "root::0:0::/mnt:/bin/bash", USERS, flags=re.MULTILINE))
            (own / "sshd_config").write_text(SSHD_CONFIG.format(ip=ip, keys=keys))
            sh("ip", "netns", "add", space)
            undo.callback(sh, "ip", "netns", "delete", space)
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            sh("ip", "link", "set", outer, "master", bridge, "up")
            inside = ["ip", "netns", "exec", space]
            sh(*inside, "ip", "link", "set", "lo", "up")
            sh(*inside, "ip", "link", "set", "eth0", "up")
            sh(*inside, "ip", "address", "add", f"{ip}/24", "dev", "eth0")
            # Leads nowhere, but Ray takes the address that its packets would leave from.
            sh(*inside, "ip", "route", "add", "default", "via", GATEWAY)
            script = HOST.format(folder=own, number=number, sshd=SSHD)
            spaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
            with (own / "sshd.log").open("w") as log:
                host = subprocess.Popen([*inside, *spaces, "bash", "-c", script], stdout=log, stderr=log)
            undo.callback(host.wait)
            undo.callback(host.send_signal, signal.SIGKILL)  # and with its first process all of the space
        yield folder


@pytest.fixture(scope="module")
def laptop(hosts: Path) -> Laptop:
    """A laptop with the shipped on-premise file: placeholders filled in, this environment in place of a new one."""
    home = hosts / "laptop"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    (home / ".ray" / "auth_token").chmod(0o600)
    tree = yaml.safe_load((ROOT / "clusters" / "on-premise.yaml").read_text())
    tree["cluster_name"] = f"raydelta-{os.getpid()}"
    tree["provider"] |= {"head_ip": IPS[0], "worker_ips": IPS[1:]}
    tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts / "keys" / "laptop")}
    tree["metadata"]["runs"] = RUNS
    install = [f"ln -sfn {sys.prefix} ~/venv"]
    settings = {
        "AWS_ENDPOINT_URL": f"http://{GATEWAY}:{PORT}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "RAY_raylet_start_wait_time_s": "180",  # three hosts share one processor here
        "OMP_NUM_THREADS": "1",
    }
    more = " ".join(f"'export {name}={value}'" for name, value in settings.items())
    kept = [command for command in tree["setup_commands"] if "venv ~/venv" not in command and "pip" not in command]
    assert len(kept) == len(tree["setup_commands"]) - 2
    tree["setup_commands"] = install + [
        command.replace("> ~/ray-environment", f"{more} > ~/ray-environment") for command in kept
    ]
    for commands in (tree["head_start_ray_commands"], tree["worker_start_ray_commands"]):
        # One processor each: two workers of a training are on two hosts.
        commands[-1] = commands[-1].replace("ray start", "ray start --num-cpus=1 --object-store-memory=300000000")
    cluster = hosts / "cluster.yaml"
    cluster.write_text(yaml.safe_dump(tree))
    read_cluster_file(cluster)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= settings | {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    return Laptop(hosts, cluster, environment)


@pytest.fixture(scope="module")
def buckets(hosts: Path, ray_session: None) -> Iterator[Any]:
    """A client of a server on the bridge: in ``sets`` lie a synthetic and a real data set, in ``runs`` nothing."""
    import boto3
    from botocore.exceptions import EndpointConnectionError

    endpoint = f"http://{GATEWAY}:{PORT}"
    command = [sys.executable, "-m", "moto.server", "-H", GATEWAY, "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = boto3.client("s3", endpoint_url=endpoint)
        deadline = time.monotonic() + 60
        while True:
            try:
                for name in ("sets", "runs"):
                    client.create_bucket(Bucket=name)
                break
            except EndpointConnectionError:  # it does not listen yet
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        for look, name in (("synthetic", "synthetic"), ("street", "real")):
            target = hosts / name
            simulate_dataset(look, target, counts={"train": 20, "test": 6}, width=64, height=32, seed=0)
            for file in target.iterdir():
                client.upload_file(str(file), "sets", f"{name}/{file.name}")
        yield client
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def up(laptop: Laptop, buckets: Any) -> Iterator[Laptop]:
    """The laptop, when the cluster is up with all three nodes."""
    try:
        laptop.ray("up", "-y", laptop.cluster)
        deadline = time.monotonic() + 300
        while True:  # the workers come after ray up has ended
            status = laptop.ssh(IPS[0], ". ~/ray-environment; ray status 2>&1 || true")
            if re.search(r"/3\.0 CPU", status):
                break
            logs = "tail -n 50 /tmp/ray/session_latest/logs/monitor.*"
            assert time.monotonic() < deadline, status + laptop.ssh(IPS[0], logs)
            time.sleep(3)
        yield laptop
    finally:
        laptop.ray("down", "-y", laptop.cluster)


def test_the_cluster_is_closed(up: Laptop) -> None:
    """What docs/security.md promises: no dashboard from outside, none without the token."""
    up.run("curl", "-s", f"http://{IPS[0]}:8265/api/version", expect=7)  # no connection
    assert up.ssh(IPS[0], "curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8265/api/jobs/") == "401"
    for ip in IPS:
        assert up.ssh(ip, "stat -c %a ~/.ray/auth_token").strip() == "600"
    with up.dashboard() as address:
        assert requests.get(f"{address}/api/jobs/", timeout=30).status_code == 401
        header = {"Authorization": f"Bearer {TOKEN}"}
        assert requests.get(f"{address}/api/jobs/", headers=header, timeout=30).status_code == 200


def test_a_sweep_across_the_hosts(up: Laptop, buckets: Any) -> None:
    space = up.folder / "space.yaml"
    tree = {"search": {"guidance.weight": {"grid": [0.4]}}, "trials": 1, "scheduler": "none"}
    space.write_text(yaml.safe_dump(tree | {"table": {"methods": ["guided"]}, "resources": {"workers": 2, "cpus": 1}}))
    arguments = ["tune", space, "--cluster", up.cluster, *TINY_ARGUMENTS]
    arguments += ["--synthetic", "s3://sets/synthetic", "--real", "s3://sets/real"]
    output = up.raydelta(*arguments, timeout=1200)
    assert "3 nodes, 3 CPUs, 0 GPUs" in output, output
    assert re.search(r"guided .*4 \+ 2", output), output
    assert "best trial" in output
    pages = buckets.get_paginator("list_objects_v2").paginate(Bucket="runs")
    kept = {
        item["Key"]: buckets.get_object(Bucket="runs", Key=item["Key"])["Body"].read()
        for page in pages
        for item in page["Contents"]
    }
    for pattern in ("all/translator-*/stage.json", "all/tune-space-*/table.json"):
        assert len(fnmatch.filter(kept, pattern)) == 1, sorted(kept)
    unfinished = fnmatch.filter(kept, "all/unfinished/translator-*")
    assert all(name.endswith("/") for name in unfinished), unfinished  # Arrow marks a folder with an empty object
    for config in fnmatch.filter(kept, "all/translator-*/checkpoint/config.yaml"):
        # Of one processor each, as the hosts have: they were on two.
        assert yaml.safe_load(kept[config])["compute"]["workers"] == 2

    listed = up.raydelta("jobs", "--cluster", up.cluster)
    assert re.search(r"tune-space-\S+ +succeeded", listed), listed
    assert not [name for name, content in kept.items() if TOKEN.encode() in content]


def test_a_sweep_that_is_killed_goes_on_past_a_damaged_checkpoint_in_the_bucket(up: Laptop, buckets: Any) -> None:
    """Every process of the sweep is killed, on all hosts; then a bit of its last checkpoint flips in the bucket."""
    space = up.folder / "killed.yaml"
    tree = {"search": {"guidance.weight": {"grid": [0.7]}}, "trials": 1, "scheduler": "none"}
    space.write_text(yaml.safe_dump(tree | {"table": {"methods": ["guided"]}, "resources": {"workers": 1, "cpus": 1}}))
    arguments = ["tune", space, "--cluster", up.cluster, *TINY_ARGUMENTS, "translator.steps=600"]
    arguments += ["compute.report_every=25", "compute.checkpoint_every=50"]
    arguments += ["--synthetic", "s3://sets/synthetic", "--real", "s3://sets/real"]
    command = [str(part) for part in (sys.executable, "-m", "raydelta.cli", *arguments)]
    log = up.folder / "killed.log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("w") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=up.environment)

    def checkpoints() -> list[str]:
        """Those of the trial that are whole, the last one first."""
        listed = buckets.list_objects_v2(Bucket="runs", Prefix="all/unfinished/translator-").get("Contents", [])
        found = [item["Key"].rpartition("/")[0] for item in listed if item["Key"].endswith("/meta.json")]
        return sorted(found, key=lambda name: int(name.rpartition("-")[2]), reverse=True)

    process, deadline = start(), time.monotonic() + 400
    while len(checkpoints()) < 2:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    # Not Ray's own agents, which would take their node with them.
    ours = "grep -E 'ray::|raydelta.* tune' | grep -vE 'grep|Agent|JobSupervisor'"
    kill = f"ps -e -o pid=,args= | {ours} | awk '{{print $1}}' | xargs -r kill -9"
    for ip in IPS:  # each sees its own processes alone
        up.ssh(ip, f"{kill}; true")
    assert process.wait(timeout=120) == 1, log.read_text()
    time.sleep(2)
    before = checkpoints()
    key = f"{before[0]}/networks.safetensors"
    content = bytearray(buckets.get_object(Bucket="runs", Key=key)["Body"].read())
    content[-1000] ^= 1
    buckets.put_object(Bucket="runs", Key=key, Body=bytes(content))

    # Its curve comes with every checkpoint; what is reported again shows where it went on.
    curve = f"{before[0].rpartition('/')[0]}/curve.jsonl"

    def reports() -> list[int]:
        content = buckets.get_object(Bucket="runs", Key=curve)["Body"].read()
        return [json.loads(line)["step"] for line in content.splitlines()]

    known, deadline = len(reports()), time.monotonic() + 600
    process = start()
    while len(reports()) == known:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    assert reports()[known] == int(before[1].rpartition("-")[2]) + 25, "the damaged one is passed over"
    assert process.wait(timeout=1200) == 0, log.read_text()
    assert re.search(r"guided .*4 \+ 2", log.read_text()), log.read_text()
    assert not checkpoints(), "what is finished is no longer kept"


def test_down_leaves_nothing_running(up: Laptop) -> None:
    up.ray("down", "-y", up.cluster)
    for ip in IPS:
        deadline = time.monotonic() + 180  # a worker's node ends by itself, a minute after the head's
        while True:
            processes = up.ssh(ip, "ps -e -o stat,comm").splitlines()
            alive = [line for line in processes if re.search("raylet|gcs_server", line) and not line.startswith("Z")]
            if not alive:
                break
            assert time.monotonic() < deadline, (ip, alive)
            time.sleep(3)
    start = time.monotonic()
    errors = up.raydelta("tune", "--cluster", up.cluster, expect=1)
    assert "is it up" in errors
    assert time.monotonic() - start < 40
