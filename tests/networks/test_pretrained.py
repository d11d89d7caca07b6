"""Pre-trained encoders, with made-up weights in timm's format."""

import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from raydelta.config import SegmenterConfig, load_config
from raydelta.errors import UserError
from raydelta.networks import build_segmenter

MEAN, DEVIATION = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
CONVNEXT: dict[str, Any] = {"encoder": "tu-convnext_atto", "depth": 5, "decoder_channels": (8,) * 5}
DINO: dict[str, Any] = {"architecture": "dpt", "encoder": "tu-vit_small_patch14_dinov2", "depth": 4}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("local weights must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def made_up(name: str, path: Path, **options: Any) -> nn.Module:
    """A timm model with random weights, none of them zero or one, saved as its hub has it."""
    torch.manual_seed(7)
    model = timm.create_model(name, pretrained=False, **options)
    for weight in model.parameters():
        nn.init.trunc_normal_(weight, 0.01, 0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval()


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("weights") / "convnext.safetensors"
    return path, made_up("convnext_atto", path)


@pytest.mark.parametrize("architecture", ["unet", "fpn", "upernet"])
def test_a_file_gives_the_features_of_timms_model_on_normalised_images(
    architecture: str, convnext: tuple[Path, nn.Module]
) -> None:
    path, model = convnext
    settings = CONVNEXT if architecture == "unet" else CONVNEXT | {"decoder_channels": (8,)}
    network = build_segmenter(SegmenterConfig(architecture=architecture, weights=str(path), **settings), 3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        mine = network.encoder(2 * images - 1)[-1]
        theirs = model.forward_features((images - MEAN) / DEVIATION)
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_a_folder_of_the_hub_is_taken_and_its_architecture_checked(tmp_path: Path) -> None:
    made_up("convnext_atto", tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"architecture": "convnext_atto", "num_classes": 1000}))
    build_segmenter(SegmenterConfig(weights=f"{tmp_path}/hub", **CONVNEXT), 3)
    with pytest.raises(UserError, match=r"is of convnext_atto, and segmenter\.encoder is tu-convnext_femto"):
        build_segmenter(SegmenterConfig(weights=f"{tmp_path}/hub", **CONVNEXT | {"encoder": "tu-convnext_femto"}), 3)


@pytest.mark.parametrize("encoder", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_dpt_takes_dino_for_images_of_any_shape(encoder: str, tmp_path: Path) -> None:
    model = made_up(encoder, tmp_path / "dino.safetensors")
    config = SegmenterConfig(weights=f"{tmp_path}/dino.safetensors", **DINO | {"encoder": f"tu-{encoder}"})
    network = build_segmenter(config, 5).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 64, 128)).shape == (2, 5, 64, 128)
        assert network(torch.rand(1, 3, 32, 96)).shape == (1, 5, 32, 96)
    own, theirs = network.encoder.model.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight
    assert torch.equal(own, theirs)
    again = build_segmenter(config, 5, pretrained=False)
    again.load_state_dict(network.state_dict())


def test_the_librarys_own_encoders_take_a_file(tmp_path: Path) -> None:
    start = build_segmenter(SegmenterConfig(encoder="resnet18", depth=4), 3)
    torch.save({"state_dict": start.encoder.state_dict()}, tmp_path / "resnet.pth")
    network = build_segmenter(SegmenterConfig(encoder="resnet18", depth=4, weights=f"{tmp_path}/resnet.pth"), 3)
    assert torch.equal(network.encoder.layer1[0].conv1.weight, start.encoder.layer1[0].conv1.weight)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of the file ran",)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Harmful()}))


def write_others(path: Path) -> None:
    torch.save({"stem.weight": torch.rand(3, 3)}, path)


def write_list(path: Path) -> None:
    torch.save([torch.rand(3)], path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot be read as weights"),
        (lambda path: path.write_bytes(b"not weights"), "cannot be read as weights"),
        (write_pickle, "cannot be read as weights"),
        (write_list, "holds no state dict"),
        (write_others, "no tensor 'stem.weight' among the weights"),
    ],
)
def test_files_that_are_no_weights_are_named(
    write: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as caught:
        build_segmenter(SegmenterConfig(weights=f"{tmp_path}/x.pth", **CONVNEXT), 3)
    assert str(tmp_path / "x.pth") in str(caught.value)
    assert "code of the file ran" not in capsys.readouterr().out


def test_weights_that_timm_would_pass_over_in_silence_are_refused(tmp_path: Path) -> None:
    write_others(tmp_path / "x.pth")
    with pytest.raises(UserError, match="not the weights of this encoder"):
        build_segmenter(SegmenterConfig(weights=f"{tmp_path}/x.pth", depth=4), 3)


def test_weights_of_a_smaller_model_do_not_fit(convnext: tuple[Path, nn.Module]) -> None:
    with pytest.raises(UserError, match="cannot be built"):
        build_segmenter(SegmenterConfig(weights=str(convnext[0]), **CONVNEXT | {"encoder": "tu-convnext_femto"}), 3)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="name its weights"):
        load_config(overrides=["segmenter.encoder_rate=0"])
    with pytest.raises(UserError, match=r"data\.height = 48 must be a multiple of 32 for segm.*dpt"):
        load_config(overrides=["segmenter.architecture=dpt", "data.height=48"])
    with pytest.raises(UserError, match="set it to 4"):
        load_config(overrides=["segmenter.architecture=dpt", "segmenter.depth=3"])
