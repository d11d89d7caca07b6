"""What strangers' files and a curious neighbour can not do. Checkpoints that are pickles: test_checkpoint.py."""

import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import raydelta
from raydelta.compute import credentials
from raydelta.config import Config, SegmenterConfig, load_config, override
from raydelta.data import checking, shards
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.data.streams import load_images, stream_rows
from raydelta.errors import UserError
from raydelta.networks import build_segmenter
from raydelta.storage import files as storage
from raydelta.storage import locks
from raydelta.training.job import make_job, read_job
from raydelta.training.run import train_here
from raydelta.training.trained import load_segmenter
from tests.tiny import UNET

pytestmark = pytest.mark.usefixtures("ray_session")


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    target = tmp_path_factory.mktemp("data") / "set"
    simulate_dataset("synthetic", target, counts={"train": 4}, width=64, height=32, seed=0)
    return target


def with_column(source: Path, target: Path, column: str, values: pa.Array) -> Path:
    """A copy of a data set whose shard has another column."""
    target.mkdir()
    name = "train-00000.parquet"
    table = pq.read_table(source / name)
    field = pa.field(column, values.type)
    index = table.schema.get_field_index(column)
    table = table.set_column(index, field, values) if index >= 0 else table.append_column(field, values)
    pq.write_table(table, target / name)
    shutil.copy(source / "manifest.json", target)
    return target


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "column", [pytest.param("id", marks=SLOW), "image", pytest.param("label", marks=SLOW), "extra"]
)
def test_a_shard_of_pickles_runs_no_code(dataset: Path, tmp_path: Path, column: str) -> None:
    """Ray registers a column type with pyarrow whose values are pickles, and are loaded when they are looked at."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    trace = tmp_path / "exploded"
    bombs = ArrowPythonObjectArray.from_objects([Bomb(trace)] * 4)
    stranger = with_column(dataset, tmp_path / "stranger", column, bombs)
    for read in (
        lambda: shards.read_rows(stranger, "train"),
        lambda: shards.list_ids(stranger, "train"),
        lambda: load_images(str(stranger), "train", (64, 32)),
        lambda: list(shards.read_groups(str(stranger / "train-00000.parquet"), ["id", "image"])),
    ):
        with pytest.raises(UserError, match=r"its columns are not those of a shard"):
            read()
    assert "its columns are not those of a shard" in "\n".join(checking.check(stranger).problems)
    with pytest.raises(Exception, match="its columns are not those of a shard"):  # wrapped by Ray
        stream_rows(str(stranger), "train", (64, 32)).take(1)
    assert not trace.exists()
    if column != "extra":  # the bomb is one: without the check this is what happens
        with pytest.raises((FileExistsError, TypeError)):
            pq.read_table(stranger / "train-00000.parquet")[column].to_pylist()[0] + 1
        assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"PAR1", pickle.dumps([1, 2, 3])])
def test_a_shard_or_manifest_that_is_a_pickle_is_refused(dataset: Path, tmp_path: Path, content: bytes) -> None:
    stranger = with_column(dataset, tmp_path / "stranger", "extra", pa.array([0] * 4))
    (stranger / "train-00000.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.parquet: shard cannot be read"):
        shards.read_rows(stranger, "train")
    (stranger / "manifest.json").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match="is damaged"):
        shards.read_manifest(stranger)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/b", "..", "a\\b", "", 7])
@pytest.mark.parametrize("key", ["expert", "translator", "student", "members"])
def test_a_stage_cannot_name_a_directory_elsewhere(tmp_path: Path, key: str, name: Any) -> None:
    run = tmp_path / "runs" / "stranger"
    run.mkdir(parents=True)
    value = [name] if key == "members" else name
    (run / "stage.json").write_text(json.dumps({"kind": "translator", key: value}))
    with pytest.raises(UserError, match="names what does not lie beside it"):
        read_job(run)


SECRETS = [
    "s3://AKIA:hunter2@bucket/set",
    "s3://bucket/set?secret_key=hunter2",
    "https://h/set?X-Amz-Signature=hunter2",
    "https://account.blob.core.windows.net/box/set?sv=2024&se=2030&sig=hunter2",
    "https://hunter2@host/set",
    "simplecache::s3://AKIA:hunter2@bucket/set",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize("field", ["synthetic", "real"])
def test_an_address_with_a_secret_never_gets_into_a_config(address: str, field: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{field}: the address on .* holds a password or key") as caught:
        load_config(overrides=[f"data.{field}={address}"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/set", "s3://bucket/set?region=eu-west-1", "abfs://box@account.dfs.core.windows.net/set"],
)
def test_other_addresses_do(address: str) -> None:
    assert load_config(overrides={"data.real": address}).data.real == address


@pytest.mark.parametrize(
    "address",
    [
        "reference://::http://HOST/ref.json",
        "simplecache::http://HOST/set",
        "reference://HOST/set",
        "jar://HOST/x",
        "zip://set::http://HOST/set.zip",
        "github://org:repo@HOST/set",
        "s3://bucket/set?endpoint_override=HOST",
        "s3://bucket/set?region=eu&ENDPOINT_OVERRIDE=HOST&scheme=http",
        "s3://bucket/set?scheme=http",
        "s3://bucket/set?tls_ca_file_path=/tmp/ca",
        "gs://bucket/set?endpoint_override=HOST",
        "abfs://box@HOST.example.com/set",
        "abfss://:key@HOST.example.com/box/set",
    ],
)
def test_an_address_that_leads_elsewhere_is_not_opened(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's config may name it; the server that it leads to must not see a connection."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        where = f"127.0.0.1:{server.getsockname()[1]}"
        for open_it in (shards.read_manifest, storage.read_bytes, locks.exclusive):
            refused = pytest.raises(UserError, match=r"no way to read|is not taken from an address|no server of Azure")
            with refused, open_it(address.replace("HOST", where)):
                pass
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_web_server_is_read_and_not_written(dataset: Path) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(dataset.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert shards.read_manifest(f"{address}/{dataset.name}").splits["train"].rows == 4
        with pytest.raises(UserError, match="can only be read"), locks.exclusive(f"{address}/new"):
            pass
        server.shutdown()


def test_a_strangers_stage_contacts_no_hub(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a finished training are its own: what it once started from is not fetched again."""
    job = make_job("expert", override(trained["expert"].config, UNET | {"expert.steps": 2}), tmp_path)
    train_here(job)
    stranger = job.directory
    file = stranger / "checkpoint" / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["segmenter"]["weights"] = "imagenet"
    file.write_text(yaml.safe_dump(tree))
    meta = json.loads((stranger / "checkpoint" / "meta.json").read_text())
    meta["sha256"]["config.yaml"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (stranger / "checkpoint" / "meta.json").write_text(json.dumps(meta))
    monkeypatch.setattr(socket.socket, "connect", refuse_connection)
    load_segmenter(stranger, 11)
    for encoder in ("tu-hf-hub:stranger/net", "tu-hf_hub:stranger/net", "tu-local-dir:/tmp"):
        with pytest.raises(UserError, match=r"segmenter\.encoder"):
            build_segmenter(SegmenterConfig(encoder=encoder), 11)


def refuse_connection(self: socket.socket, address: Any) -> None:
    raise AssertionError(f"connects to {address}")


def test_a_secret_on_the_command_line_is_not_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raydelta.cli", "tune", "--real", SECRETS[0], "--runs", str(tmp_path)]
    for more in ([], ["--address", "http://127.0.0.1:1"]):
        result = subprocess.run([*command, *more], capture_output=True, text=True, timeout=100)
        assert result.returncode == 1
        assert "holds a password or key" in result.stderr
        assert "hunter2" not in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["s3://AKIA:hunter2@bucket/set", "memory://AKIA:hunter2@set", "a::s3://AKIA:hunter2@b/set"]
)
def test_a_secret_in_another_address_is_not_printed_either(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError) as caught:
        shards.read_manifest(address)
    assert "hunter2" not in str(caught.value)


def test_the_token_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    mask = os.umask(0)
    try:
        credentials.make_token()
    finally:
        os.umask(mask)
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    content = token.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", content)
    token.chmod(0o644)  # as Ray itself would have left it
    credentials.make_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == content, "a token that is there stays"


def test_a_token_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ray").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"~/\.ray/auth_token: cannot be written"):
        credentials.make_token()


def test_nothing_unpickles_or_evaluates() -> None:
    """Every new use of what runs code from a file has to be looked at."""
    package = Path(raydelta.__file__).parent
    risky = re.compile(r"\bpickle\.|cloudpickle|weights_only=False|yaml\.(unsafe_)?load\(|\beval\(|\bexec\(|os\.system")
    found = [
        f"{file.name}: {line.strip()}" for file in package.rglob("*.py") for line in file.open() if risky.search(line)
    ]
    assert [line for line in found if ".eval()" not in line] == []
    assert Config()  # a plain tree, written and read by safe YAML
