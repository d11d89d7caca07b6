"""Where a training runs: device, rank, precision, and what depends on them (DDP wrapper, sums over the ranks)."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Place:
    """One of ``world`` data-parallel processes."""

    device: torch.device
    rank: int = 0
    world: int = 1
    dtype: torch.dtype = torch.float32  # of convolutions; losses and weights stay fp32

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network as its training forward must call it: in a DDP wrapper of its own if there are several ranks."""
        if self.world == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

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


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 where asked for, or with ``auto`` where the hardware has bf16 matrix units; else fp32."""
    if precision == "auto":
        precision = "bf16" if has_bf16_units(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 multiplies faster than fp32 there (Ampere and later; AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return any(cast(bool, check()) for check in supported)
