"""Runs in a bucket of a real S3-compatible server on loopback. A machine is a cache directory of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raydelta.errors import UserError
from raydelta.storage.bucket import (
    fetch,
    names_in,
    open_copy,
    open_run,
    open_runs,
    publish,
    publish_copy,
    remove,
    size_of,
)
from raydelta.storage.files import Away, address_of, explain, shown, write_atomically
from tests.storage.test_files import fill, listing

Machine = Callable[[str], Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The copy of a bucket's folder on a machine of that name."""

    def open_on(name: str, address: str = "") -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return open_copy(address or "s3://raydelta-tests/runs")

    return open_on


@pytest.fixture
def client(s3: str) -> Any:
    import boto3

    client = boto3.client("s3")
    yield client
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="raydelta-tests", Prefix="runs/")
    for item in [item for page in pages for item in page.get("Contents", [])]:
        client.delete_object(Bucket="raydelta-tests", Key=item["Key"])


def keys(client: Any) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="raydelta-tests", Prefix="runs/")
    found = [item["Key"].removeprefix("runs/") for page in pages for item in page.get("Contents", [])]
    return sorted(key for key in found if key and not key.endswith("/"))  # Arrow marks folders with an empty object


def test_a_path_says_whose_copy_it_is(machine: Machine, s3: str, tmp_path: Path) -> None:
    runs = machine("one")
    assert address_of(runs) == "s3://raydelta-tests/runs"
    assert shown(runs / "tune-1" / "table.json") == "s3://raydelta-tests/runs/tune-1/table.json"
    assert (address_of(tmp_path), shown(tmp_path)) == (None, str(tmp_path))
    assert runs.stat().st_mode & 0o777 == 0o700
    options = open_copy("s3://raydelta-tests/runs?region=us-east-1")
    assert options != runs
    assert address_of(options / "a") == "s3://raydelta-tests/runs/a?region=us-east-1"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://key:secret@bucket/runs", "no password in their address"),
        ("s3://bucket/runs?secret_key=abc", "no password in their address"),
        ("https://example.org/runs", "in a folder or in a bucket"),
        ("ftp://example.org/runs", "no way to read such an address"),
    ],
)
def test_addresses_that_hold_no_runs(address: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_runs(address)
    assert "secret@" not in str(caught.value)


def test_what_one_machine_publishes_another_fetches(machine: Machine, client: Any) -> None:
    one, two = machine("one"), machine("two")
    stage = fill(one / "expert-1" / "checkpoint", **{"weights.bin": "w" * 2_000_000, "config.yaml": "c"})
    publish(stage, whole=True)
    fetch(two / "expert-1", light=True)
    assert listing(two) == ["expert-1", "expert-1/checkpoint", "expert-1/checkpoint/config.yaml"]
    fetch(two / "expert-1")
    assert (two / "expert-1/checkpoint/weights.bin").read_text() == "w" * 2_000_000
    assert size_of(machine("three") / "expert-1") == 2_000_001
    assert names_in(machine("three")) == ["expert-1"]

    fetch(machine("four") / "expert-1", light=True)
    fetch(machine("four") / "expert-1", age=60)
    assert (machine("four") / "expert-1/checkpoint/weights.bin").exists(), "what is light is not all"

    write_atomically(one / "expert-1" / "stage.json", "{}")
    assert "expert-1/stage.json" in keys(client), "written through"
    fetch(two / "expert-1", light=True)
    assert (two / "expert-1" / "stage.json").read_text() == "{}"

    remove(one / "expert-1")
    assert keys(client) == []
    assert not (one / "expert-1").exists()
    fetch(two / "expert-1")
    assert not (two / "expert-1" / "stage.json").exists(), "what is gone there goes here"


def test_what_has_not_changed_is_not_transferred_again(machine: Machine, client: Any) -> None:
    one = machine("one")
    publish(fill(one / "tune-1", a="1", b="2"))
    written = client.head_object(Bucket="raydelta-tests", Key="runs/tune-1/a")["LastModified"]
    time.sleep(1.1)
    (one / "tune-1" / "b").write_text("3")
    publish(one / "tune-1")
    assert client.head_object(Bucket="raydelta-tests", Key="runs/tune-1/a")["LastModified"] == written
    assert client.get_object(Bucket="raydelta-tests", Key="runs/tune-1/b")["Body"].read() == b"3"
    before = (one / "tune-1" / "a").stat()
    fetch(one / "tune-1")
    assert (one / "tune-1" / "a").stat().st_ino == before.st_ino


def test_what_was_changed_here_and_not_published_stays(machine: Machine, client: Any) -> None:
    one, two = machine("one"), machine("two")
    publish(fill(one / "unfinished" / "x", curve="1 2", old="there"))
    (one / "unfinished/x/curve").write_text("1 2 3")
    (one / "unfinished/x/new").write_text("here")
    publish(fill(two / "unfinished" / "x", curve="1"))
    fetch(one / "unfinished" / "x")
    assert {path.name: path.read_text() for path in (one / "unfinished/x").iterdir()} == {
        "curve": "1 2 3",
        "new": "here",
        "old": "there",
    }
    fetch(one / "unfinished" / "x", over=True)
    assert (one / "unfinished/x/curve").read_text() == "1"
    assert (one / "unfinished/x/new").read_text() == "here"
    (one / "unfinished/x/curve").write_text("1 2")
    publish_copy(one / "unfinished/x/curve")
    assert client.get_object(Bucket="raydelta-tests", Key="runs/unfinished/x/curve")["Body"].read() == b"1 2"


def test_a_manifest_comes_last_and_goes_first(machine: Machine, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydelta.storage import bucket

    one = machine("one")
    checkpoint = fill(one / "checkpoint-1", **{"meta.json": "1", "a.pt": "1", "b.pt": "1", "rank-3.pt": "1"})
    publish(checkpoint, whole=True)
    for name in ("meta.json", "a.pt", "b.pt"):
        (checkpoint / name).write_text("22")
    (checkpoint / "rank-3.pt").unlink()

    def dies(source: Path, files: Any, path: str) -> None:
        if path.endswith("b.pt"):
            raise OSError("killed")
        put(source, files, path)

    put = bucket.put
    with monkeypatch.context() as patched, pytest.raises(UserError, match="killed"):
        patched.setattr(bucket, "put", dies)
        publish(checkpoint, whole=True)
    assert "checkpoint-1/meta.json" not in keys(client), "half a checkpoint has none"
    publish(checkpoint, whole=True)
    assert keys(client) == ["checkpoint-1/a.pt", "checkpoint-1/b.pt", "checkpoint-1/meta.json"]


def test_a_first_look_brings_what_is_light_of_every_run(machine: Machine, client: Any, s3: str) -> None:
    one = machine("one")
    publish(fill(one / "expert-1" / "checkpoint", **{"config.yaml": "c", "networks.safetensors": "w" * 2_000_000}))
    publish(fill(one / "tune-1" / "sweep" / "trial", **{"result.json": "r"}))
    publish(fill(one / "data" / "street", **{"train-0.parquet": "p"}))
    write_atomically(one / "tune-1" / "run.json", "{}")
    machine("two")
    two = open_runs(f"{s3}/runs", write=True)
    assert [name for name in listing(two) if (two / name).is_file()] == [
        "expert-1/checkpoint/config.yaml",
        "tune-1/run.json",
    ]
    assert (open_run(f"{s3}/runs/tune-1") / "sweep/trial/result.json").exists()
    assert keys(client) == [
        "data/street/train-0.parquet",
        "expert-1/checkpoint/config.yaml",
        "expert-1/checkpoint/networks.safetensors",
        "tune-1/run.json",
        "tune-1/sweep/trial/result.json",
    ], "the probe is gone"


def test_a_bucket_that_does_not_exist_is_named(s3: str, machine: Machine) -> None:
    machine("one")
    for write in (True, False):
        with pytest.raises(
            UserError, match=r"s3://nowhere-of-raydelta/runs: there is no bucket s3://nowhere-of-raydelta;"
        ):
            open_runs("s3://nowhere-of-raydelta/runs", write=write)
    assert list(open_runs(f"{s3}/nothing-yet").iterdir()) == []


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket on a server that does not know the keys of this machine."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        boto3.client("s3").create_bucket(Bucket="guarded")
        yield "s3://guarded/runs"
    finally:
        server.kill()
        server.wait()


def test_a_bucket_without_rights_is_named_with_what_to_do(guarded: str, machine: Machine) -> None:
    machine("one")
    for write in (True, False):
        with pytest.raises(UserError, match="s3://guarded/runs: no right to it; the credentials of this machine"):
            open_runs(guarded, write=write)


def test_a_server_that_says_nothing_is_named_within_half_a_minute(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UserError, match=r"s3://silent cannot be reached.*check the network and AWS_ENDPOINT_URL"):
            open_runs("s3://silent/runs", write=True)
        assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: The specified bucket does not exist",
            "no buck",
        ),
        ("PERMISSION_DENIED: Permission storage.objects.create denied", "no right"),
        ("Http error 403: this request is not authorized", "no right"),
        ("ContainerNotFound: The specified container does not exist.", "no bucket"),
        ("AWS Error INVALID_ACCESS_KEY_ID in bucket: The key you provided does not exist in our records.", "no right"),
        ("AWS Error NETWORK_CONNECTION: curlCode: 7, Could not connect to server", "cannot be reached"),
    ],
)
def test_what_a_store_says_becomes_what_to_do(text: str, told: str) -> None:
    error = explain("s3://bucket/runs/tune-1", OSError(text))
    assert str(error).startswith("s3://bucket/runs/tune-1: ") and told in str(error)
    assert isinstance(error, Away) == (told == "cannot be reached")
