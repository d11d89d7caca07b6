"""What several test modules share."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from raydelta.compute.cluster import SETTINGS
from raydelta.compute.credentials import make_token

# Readers of strangers' files are tested with a few mutations here and with many in the scheduled job (scheduled.yml).
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW
)
settings.register_profile("long", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Two test processes share two cores: with more threads than cores, all that they compute waits for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# Ray takes the mode at its import, which some test modules do at theirs.
make_token()
os.environ.setdefault("RAY_AUTH_MODE", "token")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    S3_PORT = probe.getsockname()[1]
# Not the record of whoever runs the tests (raydelta.compute.asked).
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="raydelta-state-")
# Before Ray starts, as its workers inherit them.
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an empty bucket on an S3-compatible server on loopback."""
    import boto3

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", S3_PORT), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)
        boto3.client("s3").create_bucket(Bucket="raydelta-tests")
        yield "s3://raydelta-tests"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def stoppable_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with the bucket ``away``, which a test may stop and start again; its content stays."""
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket="away")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One private Ray for all tests that need it: starting it takes seconds."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    # Without the dashboard a trial that Tune ends early blocks the next one for ever.
    ray.init("local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def drawn(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory with the simulated data sets of ``TINY`` and nothing else."""
    from raydelta.config import load_config
    from raydelta.data.prepare import prepare_data
    from tests.tiny import TINY

    runs = tmp_path_factory.mktemp("drawn")
    prepare_data(load_config(overrides=TINY), runs)
    return runs


@pytest.fixture
def runs(drawn: Path, tmp_path: Path) -> Path:
    """An output directory of the test's own, its data sets drawn already."""
    return shutil.copytree(drawn, tmp_path / "runs")


@pytest.fixture(scope="session")
def translator(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The job of a translator with next to no training, and its expert beside it."""
    from raydelta.config import load_config
    from raydelta.data.prepare import prepare_data
    from raydelta.training.job import make_job
    from raydelta.training.run import train_here
    from tests.tiny import TINY

    runs = shutil.copytree(drawn, tmp_path_factory.mktemp("runs"), dirs_exist_ok=True)
    config = prepare_data(load_config(overrides=TINY | {"expert.steps": 2, "translator.steps": 2}), runs)
    expert = make_job("expert", config, runs)
    train_here(expert)
    job = make_job("translator", config, runs, expert.directory)
    train_here(job)
    return job


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Finished jobs by kind: a translator, and the trainings of an ensemble. The test split is the training split."""
    import torch

    from raydelta.config import load_config, override
    from raydelta.training.job import make_job
    from raydelta.training.run import train_here
    from tests.sets import REAL_NAMES, STEPS, write_set
    from tests.tiny import TINY

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    sets = {
        "data.synthetic": write_set(folder / "simulated", "synthetic", [(f"s{index}", "all") for index in range(22)]),
        "data.real": write_set(folder / "street", "street", REAL_NAMES),
    }
    shutil.copy(folder / "street" / "train-00000.parquet", folder / "street" / "test-00000.parquet")
    config = override(load_config(overrides=TINY | STEPS), sets)
    jobs: dict[str, Any] = {"expert": make_job("expert", config, folder / "runs")}
    for kind in ("translator", "joint training", "mean teacher", "colours matched"):
        jobs[kind] = make_job(kind, config, folder / "runs", jobs["expert"].directory)  # type: ignore[arg-type]
    for job in jobs.values():
        train_here(job)
    return jobs


LONG = ("test_tune", "test_cli", "test_on_ray", "test_trials", "test_remote", "test_replay", "test_predict")
"""Files that take minutes: begun first, so that none of them is left to one process at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What did not run is named: a skipped test must not go by as one more letter."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"WARNING {report.nodeid}: {report.longrepr[2]}", yellow=True, bold=True)
