import tempfile
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed
from timm.layers import BatchNormAct2d
from torch import nn

from raydelta.compute import device as device_module
from raydelta.compute.device import Place, choose_dtype, find_place
from raydelta.config import Config


def build_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def count_breaks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = Place(torch.device("cpu"), rank, 2).parallel(build_network())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    found = torch._dynamo.explain(network.module)(images)
    gradients = []
    for forward in (network, torch.compile(network, backend="aot_eager")):
        network.zero_grad()
        forward(images).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    Path(folder, f"breaks-{rank}").write_text(f"{found.graph_break_count} of {found.graph_count}")


def test_a_segmenter_of_two_workers_compiles_as_one_graph() -> None:
    """A break at the norm's sum over the ranks would leave most of it uncompiled, without a word."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(count_breaks, (folder,), nprocs=2, start_method="forkserver")
        assert [Path(folder, f"breaks-{rank}").read_text() for rank in (0, 1)] == ["0 of 1"] * 2


def test_norms_on_gpus_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydelta.compute.device.DistributedDataParallel", lambda network, device_ids: network)
    network = build_network()
    names = list(network.state_dict())
    shared = Place(torch.device("cuda"), 0, 2).parallel(network)
    assert [type(module).__name__ for module in shared if not isinstance(module, nn.Conv2d)] == [
        "SyncBatchNormAct",
        "SyncBatchNorm",
    ]
    assert isinstance(shared[1].act, nn.ReLU)
    assert list(shared.state_dict()) == names


def test_a_task_without_a_gpu_uses_none(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray does not hide the machine's GPUs from it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("raydelta.compute.device.choose_dtype", lambda *arguments: torch.float32)

    def choose() -> str:
        torch.cuda.is_available = lambda: True  # its process ends with it, and serves no other test
        return find_place(Config()).device.type

    assert ray.get(ray.remote(num_gpus=0, max_calls=1)(choose).remote()) == "cpu"
    assert find_place(Config()).device.type == "cuda", "a process of its own uses what there is"


def test_bf16_is_taken_where_it_was_timed_to_be_faster_and_the_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(device_module, "has_bf16_units", lambda device: True)
    timed: list[tuple[int, bool]] = []

    def time_convolution(dtype: torch.dtype, channels: int, channels_last: bool) -> float:
        timed.append((channels, channels_last))
        return 1.0 if dtype == torch.float32 else 0.5 if channels_last else 0.9

    monkeypatch.setattr(device_module, "_time_convolution", time_convolution)
    cpu = torch.device("cpu")
    for _ in range(2):  # in this process, and from the file in another
        device_module._bf16_pays.cache_clear()
        assert choose_dtype("auto", cpu, 24, True) == torch.bfloat16
        assert choose_dtype("auto", cpu, 24, False) == torch.float32
    assert timed == [(24, True)] * 2 + [(24, False)] * 2
    device_module._bf16_pays.cache_clear()
    (tmp_path / ".cache" / "raydelta" / "precision.json").write_text("half a fi")
    assert choose_dtype("auto", cpu, 24, True) == torch.bfloat16
    device_module._bf16_pays.cache_clear()
    assert choose_dtype("fp32", cpu, 24, True) == torch.float32
    assert choose_dtype("bf16", cpu, 24, False) == torch.bfloat16


def test_a_convolution_can_be_timed() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            assert device_module._time_convolution(dtype, 8, channels_last) > 0
