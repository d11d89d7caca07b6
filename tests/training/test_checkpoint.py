import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import raydelta
from raydelta.config import Config, load_config
from raydelta.errors import UserError
from raydelta.training.checkpoint import (
    find_whole,
    keep_checkpoint,
    list_checkpoints,
    read_config,
    read_meta,
    read_state,
    read_weights,
    write_checkpoint,
)


def build_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network[1](torch.randn(2, 4, 3, 3))
    return network.to(memory_format=torch.channels_last)


def write(path: Path, step: int = 1, rank: int = 0, **fields: Any) -> None:
    values: dict[str, Any] = {
        "config": Config(),
        "networks": {"net": build_network(step)},
        "state": {"training": {"step": step, "moments": torch.full((3,), float(step))}},
        "rank_state": {"random": torch.get_rng_state(), "pool": None},
    }
    write_checkpoint(path, kind="expert", step=step, device_seconds=2.5, rank=rank, **(values | fields))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = torch.zeros(100_000)
TOO_LARGE = {
    "rank-0.pt": {"rank_state": {"pool": LARGE}},
    "networks.safetensors": {"networks": {"net": nn.Linear(300, 300)}},
    "state.pt": {"state": {"moments": LARGE}},
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    config = load_config(overrides=["seed=3", "segmenter.decoder_channels=[4, 4, 4, 4]"])
    networks = {"r2s": build_network(1), "r2s_ema": build_network(2)}
    state = {"a": {"b": [torch.randn(2, 3), 1, None, 0.1]}, "half": torch.randn(4).bfloat16()}
    rank_state = {"random": torch.get_rng_state(), "pool": torch.rand(2, 3, 4, 4)}
    write_checkpoint(
        path,
        kind="translator",
        step=7,
        device_seconds=2.5,
        config=config,
        networks=networks,
        state=state,
        rank_state=rank_state,
        rank=0,
    )
    meta = read_meta(path)
    assert (meta["kind"], meta["step"], meta["device_seconds"]) == ("translator", 7, 2.5)
    assert meta["versions"] == {"raydelta": raydelta.__version__, "torch": torch.__version__}
    assert read_config(path) == config
    for name, network in networks.items():
        weights = read_weights(path, name)
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
        assert all(weights[key].dtype == value.dtype for key, value in network.state_dict().items())
    shared, own = read_state(path, rank=0)
    assert torch.equal(shared["a"]["b"][0], state["a"]["b"][0])
    assert shared["a"]["b"][1:] == [1, None, 0.1]
    assert torch.equal(shared["half"], state["half"])
    assert own.keys() == rank_state.keys()
    assert all(torch.equal(own[key], value) for key, value in rank_state.items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_the_files_are_those_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    names = ["config.yaml", "meta.json", "networks.safetensors", "rank-0.pt", "state.pt"]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == names


def test_another_rank_writes_its_own_part_only(tmp_path: Path) -> None:
    write(tmp_path / "part", rank=3, rank_state={"pool": torch.ones(2)})
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["rank-3.pt"]


def test_a_rank_that_the_run_did_not_have_has_no_state(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    assert read_state(tmp_path / "checkpoint", rank=1)[1] is None


def test_an_older_checkpoint_is_replaced_entirely(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path, step=1)
    (path / "rank-1.pt").write_bytes(b"of an older run")
    write(path, step=2)
    assert read_meta(path)["step"] == 2
    assert torch.equal(read_weights(path, "net")["0.weight"], build_network(2)[0].weight)
    assert read_state(path, rank=1)[1] is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_what_an_interrupted_write_has_left_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path.with_name("checkpoint.partial"), rank=5)
    write(path)
    assert not (path / "rank-5.pt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("file", TOO_LARGE)
def test_a_write_that_fails_midway_leaves_the_last_checkpoint_whole(tmp_path: Path, file: str) -> None:
    path = tmp_path / "checkpoint"
    write(path, step=1)
    with file_size_limit(100_000), pytest.raises(Exception):  # noqa: B017 - which one, the next test holds
        write(path, step=2, **TOO_LARGE[file])
    assert read_meta(path)["step"] == 1
    assert torch.equal(read_weights(path, "net")["0.weight"], build_network(1)[0].weight)
    assert read_state(path, 0)[0]["training"]["step"] == 1


@pytest.mark.parametrize("file", TOO_LARGE)
def test_a_write_that_fails_midway_leaves_nothing_and_says_so(tmp_path: Path, file: str) -> None:
    with file_size_limit(100_000), pytest.raises(UserError, match="checkpoint"):
        write(tmp_path / "checkpoint", **TOO_LARGE[file])
    assert list(tmp_path.iterdir()) == []


def read(path: Path) -> None:
    read_meta(path)
    read_weights(path, "net")
    read_state(path, 0)


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("file", ["networks.safetensors", "state.pt", "rank-0.pt", "meta.json"])
def test_a_truncated_file_is_named(tmp_path: Path, file: str, share: float, digests: bool) -> None:
    write(tmp_path)
    if not digests:
        forget_digests(tmp_path)
    damaged = tmp_path / file
    damaged.write_bytes(damaged.read_bytes()[: int(share * damaged.stat().st_size)])
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(damaged if file != "meta.json" else tmp_path) in str(caught.value)


@pytest.mark.parametrize("file", ["networks.safetensors", "state.pt", "meta.json"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    write(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert file in str(caught.value)


def forget_digests(path: Path) -> None:
    """As a stranger would who forges a checkpoint, or as an older version wrote it."""
    meta = json.loads((path / "meta.json").read_text())
    del meta["sha256"]
    (path / "meta.json").write_text(json.dumps(meta))


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_weights_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    os.truncate(tmp_path / "checkpoint" / "networks.safetensors", 2**40)
    with pytest.raises(UserError, match=r"networks\.safetensors: larger than the memory"):
        read_weights(tmp_path / "checkpoint", "segmenter")


@pytest.mark.parametrize("file", ["state.pt", "rank-0.pt"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_reading_runs_no_code(tmp_path: Path, file: str, how: str) -> None:
    write(tmp_path / "checkpoint")
    forget_digests(tmp_path / "checkpoint")
    trace = tmp_path / "exploded"
    bomb = {"training": Bomb(trace)}
    if how == "torch":
        torch.save(bomb, tmp_path / "checkpoint" / file)
    else:
        (tmp_path / "checkpoint" / file).write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match=file):
        read(tmp_path / "checkpoint")
    assert not trace.exists()
    if how == "pickle":
        pickle.loads((tmp_path / "checkpoint" / file).read_bytes())
        assert trace.exists()


def test_weights_that_are_a_pickle_run_no_code(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    forget_digests(tmp_path / "checkpoint")
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "checkpoint" / "networks.safetensors")
    with pytest.raises(UserError, match=r"networks\.safetensors"):
        read(tmp_path / "checkpoint")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("text", ['{"format": 3}', '{"format": 0}', "{}", "[1]", "null"])
def test_another_format_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match="format"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="format"):
        read_meta(tmp_path)


def test_a_directory_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a checkpoint"):
        read_meta(tmp_path / "nothing")


def test_a_network_that_the_checkpoint_does_not_hold_is_named(tmp_path: Path) -> None:
    write(tmp_path, networks={"r2s_ema": build_network()})
    with pytest.raises(UserError, match="'r2s'"):
        read_weights(tmp_path, "r2s")


def test_meta_is_readable_for_others(tmp_path: Path) -> None:
    write(tmp_path)
    assert json.loads((tmp_path / "meta.json").read_text())["format"] == 2


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["networks.safetensors", "state.pt", "rank-0.pt"])
def test_a_flipped_bit_is_found(tmp_path: Path, file: str) -> None:
    write(tmp_path)
    flip_a_bit(tmp_path / file)
    with pytest.raises(UserError, match=f"{file}: damaged"):
        read(tmp_path)


def kept(folder: Path, steps: range) -> Path:
    (folder / "kept").mkdir()
    for step in steps:
        write(folder / "new", step=step)
        keep_checkpoint(folder / "new", folder / "kept")
    return folder / "kept"


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = kept(tmp_path, range(8, 12))
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-11", "checkpoint-10"]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-11"]
    assert [read_meta(path)["step"] for path in list_checkpoints(folder)] == [11, 10]


@pytest.mark.parametrize(
    "file", ["networks.safetensors", "state.pt", "rank-0.pt", "rank-1.pt", "meta.json", "config.yaml"]
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, file: str) -> None:
    folder = kept(tmp_path, range(1, 3))
    assert find_whole(list_checkpoints(folder)) == folder / "checkpoint-2"
    (folder / "checkpoint-2" / file).write_bytes(b"{")
    with pytest.warns(UserWarning, match=r"checkpoint-2.*going on from checkpoint-1"):
        assert find_whole(list_checkpoints(folder)) == folder / "checkpoint-1"


def test_without_any_whole_checkpoint_nothing_starts_anew_unasked(tmp_path: Path) -> None:
    folder = kept(tmp_path, range(1, 3))
    for path in list_checkpoints(folder):
        flip_a_bit(path / "state.pt")
    with pytest.raises(UserError, match=r"remove .*kept .*checkpoint-2/state\.pt.*checkpoint-1/state\.pt"):
        find_whole(list_checkpoints(folder))


def test_no_checkpoint_is_no_damage(tmp_path: Path) -> None:
    assert find_whole(list_checkpoints(tmp_path)) is None
