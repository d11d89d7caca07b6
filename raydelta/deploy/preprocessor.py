"""What photographs go through before an expert that stays as it is: R2S, or matched colours, as a module of its own."""

from pathlib import Path

import torch
from torch import Tensor, nn

from raydelta.data.pixels import to_uint8
from raydelta.deploy.network import Chain, Deployed, choose_job, prepare
from raydelta.errors import UserError
from raydelta.networks.own_expert import OwnExpert
from raydelta.recipes import short_name
from raydelta.results.evaluate import method_of
from raydelta.training.job import BEST, Job, find_job

IN_FRONT = ("translator", "colours matched")
"""Kinds of training that put something in front of the expert."""


class Preprocessor(nn.Module):
    """Photographs uint8 (N, H, W, 3) of any size → in the synthetic look, at the height that the expert knows.

    Gives them twice: RGB uint8 (N, h, w, 3), and float (N, 3, h, w) normalised as the expert expects.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Deployed) -> None:
        """
        Args:
            model: of one chain, with something in front of its segmenter.
        """
        super().__init__()
        (chain,) = model.chains
        assert isinstance(chain, Chain) and chain.generator is not None
        self.config, self.generator = model.config, chain.generator
        own = chain.segmenter if isinstance(chain.segmenter, OwnExpert) else None
        half = torch.full((3, 1, 1), 0.5)  # a trained expert takes images in [-1, 1]
        self.register_buffer("mean", own.mean if own is not None else half)
        self.register_buffer("deviation", own.deviation if own is not None else half.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        translated = self.generator(prepare(self.config, images)).clamp(-1, 1)
        return to_uint8(translated).permute(0, 2, 3, 1), ((translated + 1) / 2 - self.mean) / self.deviation


def choose_preprocessor(run: Path, method: str | None = None) -> Job:
    """The job of a training or of a row of a sweep that has something in front of its expert.

    Args:
        method: which row; if None, the one that the sweep's table recommends, or *guided* if that one has nothing.

    Raises:
        UserError: as ``choose_job``, or the row has nothing in front of its segmenter.
    """
    job = choose_job(run, method)
    if job.kind not in IN_FRONT and method is None and (run / BEST).exists():
        job = find_job(run)
    if job.kind not in IN_FRONT:
        rows = ", ".join(map(short_name, ("guided", "taught", "unguided", "colours matched")))
        raise UserError(f"{run}: {method_of(job)} has nothing in front of its segmenter; rows that have are {rows}")
    return job
