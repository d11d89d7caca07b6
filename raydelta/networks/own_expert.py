"""A network of the user's in place of the trained expert: loaded without running code of a file, never retrained.

Files: a ``torch.export`` program (.pt2), TorchScript (.pt, .ts), the weights of ``segmenter`` (.safetensors, or .pt and
.pth as ``torch.save`` writes a state dict), or the folder of a Hugging Face segmentation checkpoint.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydelta.config import ExpertConfig, SegmenterConfig
from raydelta.errors import UserError
from raydelta.networks.segmenter import build_segmenter
from raydelta.storage.files import MOST_WEIGHTS, read_bytes

NEVER = -30.0
"""Logit of a class that the network has no output for."""


class OwnExpert(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W) of the data set's classes."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float], outputs: Sequence[Sequence[int]]
    ) -> None:
        """
        Args:
            network: normalised images (N, 3, H, W) → scores (N, K, h, w), or a mapping or object with ``logits`` or
                ``out``.
            mean: of the pixels in [0, 1] that it expects.
            outputs: for each class of the data set, which of the K scores count as it.
        """
        super().__init__()
        self.network, self.outputs = network, [list(own) for own in outputs]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1))

    def train(self, mode: bool = True) -> "OwnExpert":
        """Nothing: the network stays in the mode in which it was loaded; an exported program knows no other."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores(images)
        columns = [scores[:, own].logsumexp(1) if own else torch.full_like(scores[:, 0], NEVER) for own in self.outputs]
        return torch.stack(columns, 1)

    def scores(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] → what the network says of them, (N, K, H, W)."""
        found = self.network(((images + 1) / 2 - self.mean) / self.deviation)
        for name in ("logits", "out"):
            found = found.get(name, found) if isinstance(found, Mapping) else getattr(found, name, found)
        same = found.shape[-2:] == images.shape[-2:]
        return found if same else F.interpolate(found, images.shape[-2:], mode="bilinear")


def load_own_expert(
    path: Path, settings: ExpertConfig, segmenter: SegmenterConfig, classes: Sequence[str]
) -> nn.Module:
    """The frozen network of a file or folder, on the CPU.

    Args:
        settings: ``outputs`` names its scores in order, ``mean`` and ``deviation`` say what it expects.
        segmenter: what a file of weights belongs to.
        classes: of the data set.

    Raises:
        UserError: the file cannot be read, could run code, or its outputs do not fit the classes.
    """
    names = settings.outputs or tuple(classes)
    mean: Sequence[float] = settings.mean
    deviation: Sequence[float] = settings.deviation
    try:
        if path.is_dir():
            network, names, mean, deviation = _read_hugging_face(path, settings)
        elif path.suffix == ".pt2":
            network = _read_program(path)
        elif _is_torchscript(path):
            network = torch.jit.load(str(path), map_location="cpu")
        else:
            network = build_segmenter(segmenter, len(names), pretrained=False)
            network.load_state_dict(_read_weights(path))
    except UserError:
        raise
    except Exception as error:  # of libraries, for files that anybody may have made
        raise UserError(f"expert.model = {path}: cannot be read as a network: {error}") from error
    if path.suffix != ".pt2":  # an exported program is in the mode that it was exported in
        network.eval()
    expert = OwnExpert(network, mean, deviation, _match(names, classes, path)).requires_grad_(False)
    _check(expert, len(names), path)
    return expert


def _match(names: Sequence[str], classes: Sequence[str], path: Path) -> list[list[int]]:
    """For each class, the positions of the outputs that are called so."""
    found = [[index for index, name in enumerate(names) if name.lower() == wanted.lower()] for wanted in classes]
    if not any(found):
        raise UserError(
            f"expert.model = {path}: none of its outputs ({', '.join(names[:5])}, …) is a class of the data set "
            f"({', '.join(classes)}); name them with expert.outputs"
        )
    return found


def _check(expert: OwnExpert, outputs: int, path: Path) -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 64 * 128).view(2, 3, 64, 128).requires_grad_(True)
    try:
        scores = expert.scores(images)
        (gradient,) = torch.autograd.grad(scores.square().sum(), images)
    except Exception as error:  # of anybody's network
        raise UserError(f"expert.model = {path}: does not segment images of 128×64, differentiably: {error}") from error
    if scores.shape[:2] != (2, outputs):
        raise UserError(
            f"expert.model = {path}: gives {scores.shape[1]} scores a pixel, and {outputs} classes are named; set "
            "expert.outputs to the names of its classes in order"
        )
    if not bool(gradient.any()):
        raise UserError(f"expert.model = {path}: no gradient reaches its input, so it cannot guide")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load(read_bytes(str(path), MOST_WEIGHTS))
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return weights.get("state_dict", weights)


def _read_program(path: Path) -> nn.Module:
    """A ``torch.export`` program, unless something of it would be unpickled in a way that can run code."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.endswith("_config.json") and "/data/" in f"/{name}":
                entries: dict[str, Any] = json.loads(archive.read(name)).get("config", {})
                if any(entry.get("use_pickle", True) for entry in entries.values()):
                    raise UserError(f"expert.model = {path}: holds pickled objects ({name}), which can run code")
            if "/sample_inputs/" in name:
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except UnpicklingError as error:
                    raise UserError(f"expert.model = {path}: its sample inputs can run code: {error}") from error
    return torch.export.load(io.BytesIO(content)).module()


def _read_hugging_face(
    path: Path, settings: ExpertConfig
) -> tuple[nn.Module, tuple[str, ...], Sequence[float], Sequence[float]]:
    try:
        from transformers import AutoModelForSemanticSegmentation
    except ImportError as error:
        raise UserError(f"expert.model = {path}: a folder of Hugging Face needs pip install transformers") from error
    config = json.loads((path / "config.json").read_text())
    network = AutoModelForSemanticSegmentation.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    names = tuple(config["id2label"][key] for key in sorted(config["id2label"], key=int))
    images = path / "preprocessor_config.json"
    expected = json.loads(images.read_text()) if images.exists() else {}
    return (
        network,
        settings.outputs or names,
        expected.get("image_mean", settings.mean),
        expected.get("image_std", settings.deviation),
    )
