"""The segmenter: ``lean``, or any of segmentation-models-pytorch, from scratch unless weights are named."""

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from raydelta.config import SegmenterConfig
from raydelta.errors import UserError
from raydelta.networks.lean import Lean
from raydelta.networks.pretrained import check_loaded, expect_centred, read_weights

DPT: dict[str, Any] = {
    "decoder_intermediate_channels": (48, 96, 192, 384),
    "decoder_fusion_channels": 64,
    "patch_size": 16,
    "img_size": 512,
    "dynamic_img_size": True,
}
"""DPT as in Depth Anything's small model (Yang et al. 2024). timm resizes patches and positions of pre-trained weights
to these, and positions to the image."""


def build_segmenter(config: SegmenterConfig, classes: int, pretrained: bool = True) -> nn.Module:
    """(N, 3, H, W) in [-1, 1] → logits (N, classes, H, W); H and W multiples of ``config.multiple``.

    Args:
        pretrained: read or download the weights that the config names. False for a finished training, which has its
            own, and which may be a stranger's: reading it must not use the network.

    Raises:
        UserError: the library knows no such architecture or encoder, they do not go together, or the weights are not
            the encoder's.
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
    weights, by_timm = config.weights if pretrained else None, _is_of_timm(config.encoder)
    file = config.weights_file if weights is not None else None
    loaded = read_weights(file, config.encoder) if file is not None else None
    options = _options(config, model)
    asked: str | bool | None = weights if loaded is None else None  # of the library, to download them
    if by_timm and weights is not None:
        asked = True
        options |= {"pretrained_cfg_overlay": {"state_dict": loaded}} if loaded is not None else {}
    try:
        network = model(
            config.encoder,
            encoder_weights=asked,
            in_channels=3,
            classes=classes,
            **options,
        )
        if loaded is not None and not by_timm:
            network.encoder.load_state_dict(loaded)
        with torch.no_grad():
            size = network.eval()(torch.zeros(1, 3, 64, 64)).shape[-2:]
        if size != (64, 64):
            raise ValueError(f"its logits are {tuple(size)} for an image of (64, 64)")
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        lacks = loaded is not None and isinstance(error, KeyError)
        reason = f"there is no tensor {error} among the weights" if lacks else str(error)
        raise UserError(
            f"segmenter {config.architecture!r} with encoder {config.encoder!r}, depth {config.depth}, "
            f"decoder_channels {config.decoder_channels} and weights {weights!r} cannot be built: {reason}"
        ) from error
    if loaded is not None and file is not None:
        check_loaded(network.encoder, loaded, file)
        described: dict[str, Any] = getattr(network.encoder, "model", network).__dict__.get("pretrained_cfg", {})
        described.pop("state_dict", None)  # timm keeps it, and a copy of the network would copy it
    if weights is not None:
        expect_centred(network.encoder)
    return network.train()


def _options(config: SegmenterConfig, model: type[nn.Module]) -> dict[str, Any]:
    """What the library's model is built with; a warning names what it does not take."""
    accepted = inspect.signature(model).parameters
    options: dict[str, Any] = {"encoder_depth": config.depth}
    if len(config.decoder_channels) > 1:
        options["decoder_channels"] = config.decoder_channels
    for name in [name for name in options if name not in accepted]:
        if name != "decoder_channels" or config.decoder_channels != SegmenterConfig().decoder_channels:
            taken = f"segmenter.architecture = {config.architecture!r} takes no {name}"
            warnings.warn(f"{taken}: not honoured", stacklevel=3)
        del options[name]
    return options | (DPT if config.architecture.lower() == "dpt" else {})


def _is_of_timm(encoder: str) -> bool:
    """Whether the library leaves building it, and loading its weights, to timm."""
    from segmentation_models_pytorch.encoders import is_equivalent_to_timm_universal

    return encoder.startswith("tu-") or is_equivalent_to_timm_universal(encoder)


def _is_architecture(model: Any) -> bool:
    return (
        inspect.isclass(model)
        and issubclass(model, nn.Module)
        and "encoder_name" in inspect.signature(model).parameters
    )
