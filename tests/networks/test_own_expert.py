"""An expert of the user's: every kind of file, and what must not get in."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from raydelta.config import ExpertConfig, SegmenterConfig
from raydelta.errors import UserError
from raydelta.networks.own_expert import load_own_expert
from raydelta.networks.segmenter import build_segmenter

CLASSES = ("sky", "road", "car")
SMALL = SegmenterConfig(architecture="lean", width=6)


class Net(nn.Module):
    """Half the size, as many published segmenters, and a mapping, as torchvision's."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, outputs, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    network = Net()
    network(torch.randn(4, 3, 32, 32))  # statistics of its own
    return network.eval()


def save_program(network: nn.Module, path: Path) -> Path:
    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 64, 128),), dynamic_shapes=(dynamic,)), path)
    return path


def save_script(network: nn.Module, path: Path) -> Path:
    torch.jit.trace(network, torch.zeros(2, 3, 64, 128), strict=False).save(str(path))
    return path


def load(path: Path, **settings: Any) -> nn.Module:
    return load_own_expert(path, ExpertConfig(model=str(path), **settings), SMALL, CLASSES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("save", "name"), [(save_program, "net.pt2"), (save_script, "net.pt")])
def test_a_program_says_the_same_as_the_network_it_was_made_of(net: Net, tmp_path: Path, save: Any, name: str) -> None:
    expert = load(save(net, tmp_path / name), mean=(0.4, 0.4, 0.4), deviation=(0.2, 0.25, 0.3))
    images = torch.rand(3, 3, 32, 96) * 2 - 1
    normalised = ((images + 1) / 2 - 0.4) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    expected = nn.functional.interpolate(net(normalised)["out"], (32, 96), mode="bilinear")
    torch.testing.assert_close(expert(images), expected, atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in expert.parameters())
    images.requires_grad_(True)
    assert torch.autograd.grad(expert(images).sum(), images)[0].abs().sum() > 0


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_the_segmenter(tmp_path: Path, suffix: str) -> None:
    network = build_segmenter(SMALL, 3).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        safetensors.torch.save_file(network.state_dict(), path)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(load(path)(images), network(images))


def test_a_folder_of_hugging_face_brings_its_classes_and_normalisation(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1] * 4, depths=[1] * 4, decoder_hidden_size=8,
        id2label={0: "car", 1: "moon", 2: "sky"}, label2id={"car": 0, "moon": 1, "sky": 2},
    )  # fmt: skip
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    network.save_pretrained(tmp_path)
    mean = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(mean))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    scores = network(((images + 1) / 2 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5).logits
    scores = nn.functional.interpolate(scores, (64, 64), mode="bilinear")
    logits = load(tmp_path)(images)
    torch.testing.assert_close(logits[:, [0, 2]], scores[:, [2, 0]], atol=1e-4, rtol=1e-4)
    assert (logits[:, 1] < -20).all()  # it knows no road


def test_outputs_are_matched_by_name_and_those_of_one_name_count_together(net: Net, tmp_path: Path) -> None:
    path = save_program(net, tmp_path / "net.pt2")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    plain = load(path)(images)
    renamed = load(path, outputs=("Car", "sky", "car"))(images)
    torch.testing.assert_close(renamed[:, 0], plain[:, 1])
    torch.testing.assert_close(renamed[:, 2], plain[:, [0, 2]].logsumexp(1))
    assert (renamed[:, 1] < -20).all()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"outputs": ("sky", "road")}, "gives 3 scores a pixel, and 2 classes are named"),
        ({"outputs": ("a", "b", "c")}, "none of its outputs .* is a class of the data set"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(net: Net, tmp_path: Path, settings: Any, complaint: str) -> None:
    path = save_program(net, tmp_path / "net.pt2")
    with pytest.raises(UserError, match=rf"expert\.model = .*net\.pt2: {complaint}"):
        load(path, **settings)


def test_a_network_that_passes_no_gradient_cannot_guide(tmp_path: Path) -> None:
    class Hard(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(images)["out"].round()}

    with pytest.raises(UserError, match="no gradient reaches its input"):
        load(save_program(Hard().eval(), tmp_path / "hard.pt2"))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def repack(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, next((content for end, content in change.items() if name.endswith(end)), old.read(name)))
    return target


@pytest.mark.parametrize("where", ["sample inputs", "weights", "state dict"])
def test_nothing_of_a_file_is_run(net: Net, tmp_path: Path, where: str) -> None:
    proof, plain = tmp_path / "proof", save_program(net, tmp_path / "net.pt2")
    code = io.BytesIO()
    torch.save(Payload(proof), code)
    if where == "state dict":
        path = tmp_path / "weights.pth"
        torch.save({"layer": Payload(proof)}, path)
    elif where == "sample inputs":
        path = repack(plain, tmp_path / "bad.pt2", {"sample_inputs/model.pt": code.getvalue()})
    else:
        with zipfile.ZipFile(plain) as archive:
            name = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
            tree = json.loads(archive.read(name))
        for entry in tree["config"].values():
            entry["use_pickle"] = True
        path = repack(
            plain,
            tmp_path / "bad.pt2",
            {"model_weights_config.json": json.dumps(tree).encode(), "weights/weight_0": code.getvalue()},
        )
    with pytest.raises(UserError, match=r"expert\.model = "):
        load(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))  # it would have shown
    assert proof.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half an archive", b"{}"])
@pytest.mark.parametrize("suffix", ["pt2", "pt", "safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"expert\.model = .*net\.{suffix}: cannot be read as a network"):
        load(path)
