"""Pre-trained encoders: weights from a file or folder in timm's format, read without running code of it."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from raydelta.errors import UserError
from raydelta.storage.files import MOST_WEIGHTS, read_bytes

FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder, as timm and the Hugging Face hub write it; the first that is there."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of pixels in [0, 1] that most encoders expect."""

FOUND = 0.5
"""Share of an encoder's weights that a file has to hold as they are; timm resizes some, as those of positions."""


def read_weights(path: Path, encoder: str) -> dict[str, Tensor]:
    """The tensors of a file (.safetensors, or .pt, .pth, .bin as ``torch.save`` writes a state dict) or of a folder.

    Args:
        encoder: what they are for, as ``segmenter.encoder`` names it.

    Raises:
        UserError: it cannot be read, could run code, or is of another model.
    """
    file = path
    if path.is_dir():
        _check_model(path, encoder)
        file = next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load(read_bytes(str(file), MOST_WEIGHTS))
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"segmenter.weights = {path}: cannot be read as weights: {reason}") from error
    for name in ("state_dict", "model", "teacher"):
        if isinstance(weights, dict) and isinstance(weights.get(name), dict):
            weights = weights[name]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"segmenter.weights = {path}: holds no state dict (a mapping of names to tensors)")
    return weights


def _check_model(folder: Path, encoder: str) -> None:
    """A folder of the hub names its architecture."""
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"segmenter.weights = {folder}: {path.name} cannot be read: {error}") from error
    named = described.get("architecture") if isinstance(described, dict) else None
    own = encoder.removeprefix("tu-").partition(".")[0]
    if isinstance(named, str) and named != own:
        raise UserError(
            f"segmenter.weights = {folder}: is of {named}, and segmenter.encoder is {encoder}; set it to tu-{named}"
        )


def check_loaded(encoder: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Whether an encoder holds the weights of a file; libraries leave out what does not fit without an error.

    Raises:
        UserError: it holds less than half of its weights from there.
    """
    known = {_signature(value) for value in weights.values()}
    own = list(encoder.parameters())
    found = sum(weight.numel() for weight in own if _signature(weight) in known)
    if found < FOUND * sum(weight.numel() for weight in own):
        raise UserError(f"segmenter.weights = {path}: these are not the weights of this encoder; name the one it is of")


def _signature(weight: Tensor) -> tuple[int, float]:
    return weight.numel(), float(weight.detach().double().sum())


@torch.no_grad()
def expect_centred(encoder: nn.Module) -> None:
    """Change the first convolution to see in images in [-1, 1] what it saw in normalised ones.

    Exact for the patches of transformers and ConvNeXt. A convolution without bias is followed by a batch norm, which
    removes the shift, but for pixels beside its zero padding.
    """
    described: dict[str, Any] = getattr(getattr(encoder, "model", None), "pretrained_cfg", None) or {}
    mean, deviation = (
        torch.tensor(described.get(name) or usual).view(1, 3, 1, 1)
        for name, usual in zip(("mean", "std"), IMAGENET, strict=True)
    )
    first = next(each for each in encoder.modules() if isinstance(each, nn.Conv2d) and each.in_channels == 3)
    if first.bias is not None:
        first.bias += (first.weight * (0.5 - mean) / deviation).sum((1, 2, 3))
    first.weight *= 0.5 / deviation
