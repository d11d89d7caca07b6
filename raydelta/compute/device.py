"""The device of a training process: rank, precision, and what depends on them (DDP wrapper, sums over the ranks)."""

import contextlib
import json
import platform
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce
from torch.nn.parallel import DistributedDataParallel

from raydelta.config import Config
from raydelta.errors import UserError
from raydelta.storage.files import write_atomically


@dataclass(frozen=True)
class Place:
    """One of ``world`` data-parallel processes."""

    device: torch.device
    rank: int = 0
    world: int = 1
    dtype: torch.dtype = torch.float32  # of convolutions; losses and weights stay fp32

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network as its training forward must call it: in a DDP wrapper of its own if there are several ranks.

        Its batch norms then see the batch of all ranks: what is learnt does not depend on how many there are.
        """
        if self.world == 1:
            return network
        if self.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm  # two seconds that a driver need not pay

            network = convert_sync_batchnorm(network)  # timm's keeps the activation that is part of its norms
            return DistributedDataParallel(network, device_ids=[self.device])
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # only its forward changes, weights and names stay
                module.__class__ = type("SharedBatchNorm", (_SharedBatchNorm, type(module)), {})
        return DistributedDataParallel(network)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks. Collective: every rank must call it."""
        if self.world > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    def total_with_gradient(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, for a loss that is no sum itself. Collective.

        The gradient is that of this rank's part times the world, as DDP averages gradients over the ranks.
        """
        return self.total(value.detach()) + self.world * (value - value.detach())


def _sum(value: Tensor) -> Tensor:
    assert torch.distributed.group.WORLD is not None
    return all_reduce(value, "sum", torch.distributed.group.WORLD)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of all ranks' gradients. The compiler can read it."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return _sum(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _sum(gradients[0].contiguous())


class _SharedBatchNorm(nn.BatchNorm2d):
    """Makes a batch norm see the batches of all ranks, which are of one size. ``nn.SyncBatchNorm`` knows no CPU."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        x, dimensions, world = images.float(), (0, 2, 3), torch.distributed.get_world_size()
        mean = _Sum.apply(x.mean(dimensions)) / world
        variance = _Sum.apply((x - mean[:, None, None]).square().mean(dimensions)) / world
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            count = world * images.numel() / len(mean)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        x = (x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(images.dtype)
        for name in ("drop", "act"):  # of timm's norms
            x = self._modules[name](x) if name in self._modules else x  # type: ignore[misc]
        return x


def choose_dtype(precision: str, device: torch.device, channels: int, channels_last: bool) -> torch.dtype:
    """bf16 where asked for, or with ``auto`` where convolutions of that kind are faster in it; else fp32."""
    if precision == "auto":
        faster = has_bf16_units(device) and (device.type == "cuda" or _bf16_pays(channels, channels_last))
        precision = "bf16" if faster else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


PAYS = 1.2
"""Times as fast that bf16 convolutions have to be: what is around them costs time too."""


@cache
def _bf16_pays(channels: int, channels_last: bool) -> bool:
    """Whether bf16 convolutions are faster on this CPU. Timed once a machine: a training that goes on decides alike."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    file = Path("~/.cache/raydelta/precision.json").expanduser()
    key = f"{model}, torch {torch.__version__}, {channels} channels{' last' * channels_last}"
    known: dict[str, bool] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(file.read_text())
    if key not in known:
        seconds = [_time_convolution(dtype, channels, channels_last) for dtype in (torch.float32, torch.bfloat16)]
        known[key] = seconds[0] > PAYS * seconds[1]
        with contextlib.suppress(UserError):  # a home that cannot be written: it is timed again
            write_atomically(file, json.dumps(known, indent=1))
    return known[key]


def _time_convolution(dtype: torch.dtype, channels: int, channels_last: bool) -> float:
    """Least CPU seconds of a small convolution, forward and backward."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    convolution = nn.Conv2d(channels, channels, 3, padding=1, device="cpu", dtype=dtype).to(memory_format=layout)
    images = torch.zeros(4, channels, 64, 128, dtype=dtype).contiguous(memory_format=layout).requires_grad_(True)
    seconds = []
    for _ in range(6):
        start = time.process_time()
        convolution(images).sum().backward()
        seconds.append(time.process_time() - start)
    return min(seconds)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 multiplies faster than fp32 there (Ampere and later; AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return any(cast(bool, check()) for check in supported)


def find_place(
    config: Config, rank: int = 0, world: int = 1, device: torch.device | None = None, segmenter: bool = False
) -> Place:
    """The place of this process: the first GPU it may use, else the CPU.

    Args:
        segmenter: a segmenter is trained, whose convolutions have other shapes than those of a generator.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() and _may_use_gpu() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = "tf32"
    channels = config.segmenter.width if segmenter else config.generator.width
    return Place(device, rank, world, choose_dtype(config.compute.precision, device, channels, segmenter))


def _may_use_gpu() -> bool:
    """False in a task or actor of Ray that has reserved no GPU: Ray leaves them visible there, for others to use."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return True
    context = ray.get_runtime_context()
    return context.worker.mode != ray.WORKER_MODE or bool(context.get_accelerator_ids()["GPU"])
