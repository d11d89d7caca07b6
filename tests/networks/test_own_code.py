"""An expert by ``module:function``: the command's own code runs once; a config's never does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raydelta.config import ExpertConfig, SegmenterConfig, load_config
from raydelta.errors import UserError
from raydelta.networks.own_code import export_code, is_code
from raydelta.networks.own_expert import load_own_expert
from raydelta.training.job import make_job
from raydelta.tuning.start import export_own_code, start
from raydelta.tuning.tune import tune
from tests.sets import write_set

SOURCE = """
from pathlib import Path
import torch
from torch import nn

Path("imported").touch()
kept = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, images):
        return {"out": self.layers(images)}

def network():
    torch.manual_seed(0)
    kept.append(Net())
    return kept[-1]

def other():
    torch.manual_seed(1)
    return Net()

def broken():
    raise ValueError("no weights here")

def number():
    return 7

class Counting(Net):
    def forward(self, images):
        return self.layers(images) * (1 if images.sum().item() > 0 else 2)

def untraceable():
    return Counting()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module, as the current one; the module is forgotten afterwards."""
    (tmp_path / "theirs.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("theirs", None)


def test_a_function_of_the_command_becomes_a_file_that_needs_no_code(here: Path) -> None:
    before = list(sys.path)
    fields = export_own_code({"expert.model": "theirs:network", "seed": 3}, here / "runs")
    path = Path(fields["expert.model"])
    assert fields["seed"] == 3
    assert path.parent == here / "runs" / "networks" and path.suffix == ".pt2"
    assert sys.path == before
    network = sys.modules.pop("theirs").kept[0].eval()
    expert = load_own_expert(path, ExpertConfig(model=str(path)), SegmenterConfig(), ("sky", "road", "car"))
    for count, height, width in ((1, 32, 96), (5, 64, 64)):
        images = torch.rand(count, 3, height, width) * 2 - 1
        expected = torch.nn.functional.interpolate(network(images)["out"], (height, width), mode="bilinear")
        torch.testing.assert_close(expert(images), expected, atol=1e-5, rtol=1e-4)
    assert "theirs" not in sys.modules


def test_the_same_network_is_the_same_file_and_another_is_another(here: Path) -> None:
    first = export_code("theirs:network", here)
    written = first.stat().st_mtime_ns
    assert export_code("theirs:network", here) == first
    assert first.stat().st_mtime_ns == written
    assert export_code("theirs:other", here).name.rpartition("-")[2] != first.name.rpartition("-")[2]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere:network", "ModuleNotFoundError: No module named 'nowhere'"),
        ("theirs:missing", "AttributeError: .* has no attribute 'missing'"),
        ("theirs:broken", "ValueError: no weights here"),
        ("theirs:number", "returned int, not a torch.nn.Module"),
        ("theirs:untraceable", "torch.export cannot trace its network"),
    ],
)
def test_what_does_not_work_is_named_and_leaves_nothing(here: Path, name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=rf"^expert\.model = {name}: {complaint}"):
        export_code(name, here / "networks")
    assert not (here / "networks").exists()


def test_files_and_other_fields_are_left_as_they_are(here: Path) -> None:
    for model in ("net.pt2", "/a/b:c/net.pt2", "C:/net.pt2", "folder", None):
        assert not is_code(model)
        assert export_own_code({"expert.model": model}, here) == {"expert.model": model}
    assert export_own_code({}, here) == {}


def test_a_config_or_a_space_runs_no_code(here: Path) -> None:
    settings = here / "settings.yaml"
    settings.write_text("expert:\n  model: theirs:network\n")
    space = here / "space.yaml"
    space.write_text("config:\n  expert.model: theirs:network\ntable:\n  methods: [guided]\n")
    data = write_set(here / "simulated", "synthetic", [("s0", "all")])
    refusal = r"expert\.model = theirs:network: code runs only if you name it on the command line"
    with pytest.raises(UserError, match=refusal):
        start({}, config_file=settings)
    with pytest.raises(UserError, match=refusal):
        tune(str(space), runs=here / "runs")
    with pytest.raises(UserError, match=refusal):
        make_job("expert", load_config(file=settings, overrides={"data.synthetic": data}), here / "runs")
    assert not (here / "imported").exists()
