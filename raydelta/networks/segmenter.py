"""The segmenter: ``lean``, or any of segmentation-models-pytorch, from scratch unless weights are named."""

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from raydelta.config import SegmenterConfig
from raydelta.errors import UserError
from raydelta.networks.lean import Lean


def build_segmenter(config: SegmenterConfig, classes: int, pretrained: bool = True) -> nn.Module:
    """(N, 3, H, W) in [-1, 1] → logits (N, classes, H, W); H and W multiples of 2 to the depth.

    Args:
        pretrained: download the weights that the config names. False for a finished training, which has its own, and
            which may be a stranger's: reading it must not use the network.

    Raises:
        UserError: the library knows no such architecture or encoder, or they do not go together.
    """
    if config.architecture == "lean":
        if config.weights is not None:
            raise UserError(f"segmenter.weights = {config.weights!r}: there are none for the architecture 'lean'")
        for name in ("encoder", "depth", "decoder_channels"):
            if getattr(config, name) != SegmenterConfig.model_fields[name].default:
                warnings.warn(f"segmenter.{name}: the architecture 'lean' has none, not honoured", stacklevel=2)
        return Lean(config.width, classes)
    import segmentation_models_pytorch as smp  # takes two seconds, which the driver saves

    architectures = {name.lower(): model for name, model in vars(smp).items() if _is_architecture(model)}
    model = architectures.get(config.architecture.lower())
    if model is None:
        raise UserError(
            f"segmenter.architecture = {config.architecture!r}: known are {', '.join(sorted([*architectures, 'lean']))}"
        )
    if ":" in config.encoder:  # timm would ask a hub, or read a directory, that a stranger's config names
        raise UserError(f"segmenter.encoder = {config.encoder!r}: give the name of an encoder, not an address of a hub")
    accepted = inspect.signature(model).parameters
    options: dict[str, Any] = {"encoder_depth": config.depth}
    if len(config.decoder_channels) > 1:
        options["decoder_channels"] = config.decoder_channels
    for name in [name for name in options if name not in accepted]:
        warnings.warn(f"segmenter.architecture = {config.architecture!r} takes no {name}: not honoured", stacklevel=2)
        del options[name]
    try:
        network = model(
            config.encoder,
            encoder_weights=config.weights if pretrained else None,
            in_channels=3,
            classes=classes,
            **options,
        )
        with torch.no_grad():
            size = network.eval()(torch.zeros(1, 3, 64, 64)).shape[-2:]
        if size != (64, 64):
            raise ValueError(f"its logits are {tuple(size)} for an image of (64, 64)")
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"segmenter {config.architecture!r} with encoder {config.encoder!r}, depth {config.depth} and "
            f"decoder_channels {config.decoder_channels} cannot be built: {error}"
        ) from error
    return network.train()


def _is_architecture(model: Any) -> bool:
    return (
        inspect.isclass(model)
        and issubclass(model, nn.Module)
        and "encoder_name" in inspect.signature(model).parameters
    )
