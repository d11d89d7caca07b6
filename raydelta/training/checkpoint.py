"""Checkpoints: all state of a training in one directory, complete or absent. Reading one never runs code from it.

    checkpoint/
      meta.json               kind of training, step, device seconds so far, format and versions, digests of the files
      config.yaml             the resolved config
      networks.safetensors    all weights, as NAME.PARAMETER
      state.pt                optimisers and stream positions, the same on every rank
      rank-R.pt               what differs between ranks: random state, image pools

Rank 0 writes all but the other ranks' ``rank-R.pt``; Ray Train gathers them, and registers only what every rank sent.
A finished stage keeps the first three: what inference and a warm start need.
"""

import hashlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import safetensors.torch
import torch
from pydantic import Field, TypeAdapter
from torch import nn
from typing_extensions import TypedDict  # pydantic asks for it on Python 3.11

from raydelta.config import Config, load_config, save_config
from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.storage.bucket import fetch
from raydelta.storage.files import MOST_WEIGHTS, fill_directory, read_bytes
from raydelta.training.stage import Beside
from raydelta.version import __version__

FORMAT = 2
NETWORKS = "networks.safetensors"
KEPT = 2
"""Checkpoints of one training that are kept: the last one, and the one before it in case the last is damaged."""


def write_checkpoint(
    path: Path,
    *,
    kind: str,
    step: int,
    device_seconds: float,
    config: Config,
    networks: dict[str, nn.Module],
    state: dict[str, Any],
    rank_state: dict[str, Any],
    rank: int,
) -> None:
    """Write a rank's part of a checkpoint to a directory beside ``path``, then rename it to ``path``."""
    beside = path.with_name(path.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        digests: dict[str, str] = {}
        with _Hashed(beside / f"rank-{rank}.pt", digests) as file:
            torch.save(rank_state, file)
        if rank == 0:
            weights = {
                f"{name}.{key}": value.detach().cpu().contiguous()
                for name, network in networks.items()
                for key, value in network.state_dict().items()
            }
            with _Hashed(beside / NETWORKS, digests) as file:
                file.write(safetensors.torch.save(weights))
            with _Hashed(beside / "state.pt", digests) as file:
                torch.save(state, file)
            save_config(config, beside / "config.yaml")
            digests["config.yaml"] = _digest((beside / "config.yaml").read_bytes())
            versions = {"raydelta": __version__, "torch": torch.__version__}
            meta = {
                "format": FORMAT,
                "kind": kind,
                "step": step,
                "device_seconds": device_seconds,
                "versions": versions,
                "sha256": dict(sorted(digests.items())),
            }
            (beside / "meta.json").write_text(json.dumps(meta, indent=1))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # each library has its own for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"{path}: the checkpoint could not be written, the last one stays valid: {error}") from error
    shutil.rmtree(path, ignore_errors=True)
    beside.replace(path)


class Meta(TypedDict):
    """What ``meta.json`` holds."""

    format: int
    kind: str
    step: Annotated[int, Field(ge=0)]
    device_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    versions: dict[str, str]
    sha256: NotRequired[dict[Beside, str]]  # file → digest; older checkpoints have none


_META = TypeAdapter(Meta)


def read_meta(path: Path) -> Meta:
    """The ``meta.json`` of a checkpoint.

    Raises:
        UserError: no checkpoint there, a damaged one, or one of a newer format.
    """
    if not (path / "meta.json").exists():
        fetch(path, light=True)
    try:
        meta = read_json_file(path / "meta.json")
        if isinstance(meta, dict) and meta.get("format") == FORMAT:
            return _META.validate_python(meta)
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        raise UserError(f"{path}: not a checkpoint of raydelta: {error}") from error
    raise UserError(f"{path}: checkpoint of another format; this version reads format {FORMAT}")


def read_config(path: Path) -> Config:
    """The config a checkpoint was trained with.

    Raises:
        UserError: no checkpoint there, or one of another format.
    """
    read_meta(path)  # another format has other fields, and says so better than they do
    return load_config(file=path / "config.yaml")


def keep_checkpoint(source: Path, folder: Path) -> None:
    """Move a checkpoint into a folder, completely or not at all; the last ``KEPT`` stay there.

    Raises:
        UserError: it cannot be written; what was there stays.
    """
    fill_directory(folder / f"checkpoint-{read_meta(source)['step']}", lambda beside: shutil.move(source, beside))
    for old in list_checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def keep_weights(source: Path, target: Path) -> None:
    """Copy the networks and the config of a checkpoint, completely or not at all.

    Optimisers, streams, random states and image pools stay behind: only a training that goes on needs them.

    Raises:
        UserError: it cannot be read or written; what was there stays.
    """
    meta = read_meta(source)
    names = (NETWORKS, "config.yaml")
    meta["sha256"] = {name: digest for name, digest in meta.get("sha256", {}).items() if name in names}

    def copy(beside: Path) -> None:
        beside.mkdir()
        for name in names:
            shutil.copy(source / name, beside)
        (beside / "meta.json").write_text(json.dumps(meta, indent=1))

    fill_directory(target, copy)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints kept in a folder, the last one first."""
    whole = (path.parent for path in folder.glob("checkpoint-*/meta.json"))  # in a bucket it is written last
    steps = {path: path.name.removeprefix("checkpoint-") for path in whole}
    numbered = {path: int(step) for path, step in steps.items() if re.fullmatch(r"[0-9]{1,18}", step)}
    return sorted(numbered, key=lambda path: numbered[path], reverse=True)


def find_whole(checkpoints: Iterable[Path]) -> Path | None:
    """The first checkpoint of which every file can be read, or None; a warning names what is damaged in those before.

    Raises:
        UserError: there are some, and none is whole.
    """
    damage: list[str] = []
    for path in checkpoints:
        try:
            for file in read_meta(path).get("sha256", {}):
                _read(path, file)
            for own in path.glob("rank-*.pt"):  # of other ranks too, so that all choose the same
                _load(path, own.name)
            read_config(path)
        except UserError as error:
            damage.append(str(error))
            continue
        for line in damage:
            warnings.warn(f"{line}; going on from {path.name}", stacklevel=2)
        return path
    if damage:
        raise UserError(f"no checkpoint is whole, remove {path.parent} to train anew: {'; '.join(damage)}")
    return None


def read_networks(path: Path, names: Iterable[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of some networks of a checkpoint by name, on the CPU; the file is read once.

    Raises:
        UserError: the file is missing, damaged, or lacks one of the networks.
    """
    content = _read(path, NETWORKS)
    try:
        weights = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path / NETWORKS}: cannot be read: {error}") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in names:
        prefix = name + "."
        found[name] = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if not found[name]:
            raise UserError(f"{path}: holds no network {name!r}")
    return found


def read_weights(path: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of one network, as ``read_networks``."""
    return read_networks(path, [name])[name]


def load_network(build: Callable[[], nn.Module], path: Path, name: str) -> nn.Module:
    """The network that ``build`` makes, with the weights of that name in a checkpoint; on the CPU.

    Raises:
        UserError: as ``read_networks``, or they are of another network than the config beside them says.
    """
    return fill(build, read_weights(path, name), f"{path / NETWORKS}: its {name} is not the network of config.yaml")


def fill(build: Callable[[], nn.Module], weights: Mapping[str, torch.Tensor], complaint: str) -> nn.Module:
    """The network that ``build`` makes, with these weights.

    Raises:
        UserError: ``complaint``, as they are of another network. It is not made then: a stranger's config of a few
            bytes can name one that is larger than any memory.
    """
    shapes = _shapes_of(build)
    if shapes is not None and shapes != {name: value.shape for name, value in weights.items()}:
        raise UserError(complaint)
    network = build()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{complaint}: {error}") from error
    return network


def _shapes_of(build: Callable[[], nn.Module]) -> dict[str, torch.Size] | None:
    """The shapes of a network's weights, without memory for them; None: it cannot be made so, as some encoders."""
    try:
        with warnings.catch_warnings(action="ignore"), torch.device("meta"):
            return {name: value.shape for name, value in build().state_dict().items()}
    except Exception:  # of anybody's network; what is wrong with it is said where it is made
        return None


def read_state(path: Path, rank: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The shared state and this rank's own; the latter is None if that run had fewer ranks."""
    own = f"rank-{rank}.pt"
    return _load(path, "state.pt"), _load(path, own) if (path / own).exists() else None


def _load(path: Path, file: str) -> dict[str, Any]:
    content = _read(path, file)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same to the user
        raise UserError(f"{path / file}: no file of a checkpoint ({type(error).__name__})") from error


def _read(path: Path, file: str) -> bytes:
    """A file of a checkpoint, if it is what was written: torch and safetensors take a flipped bit for a weight."""
    try:
        if not (path / file).exists():
            fetch(path)
        content = read_bytes(str(path / file), MOST_WEIGHTS)
    except OSError as error:
        raise UserError(f"{path / file}: cannot be read: {error}") from error
    digest = read_meta(path).get("sha256", {}).get(file)  # other ranks' files have none, older checkpoints neither
    if digest not in (None, _digest(content)):
        raise UserError(f"{path / file}: damaged, it is not what was written")
    return content


class _Hashed(io.BufferedWriter):
    """A new file whose digest is known when it is closed, without reading it again."""

    def __init__(self, path: Path, digests: dict[str, str]) -> None:
        super().__init__(io.FileIO(path, "w"))
        self._path, self._hash, self._digests = path, hashlib.sha256(), digests

    def write(self, content: Any) -> int:
        self._hash.update(content)
        return super().write(content)

    def close(self) -> None:
        super().close()
        self._digests[self._path.name] = self._hash.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
