"""A finished training as one plain module: uint8 photographs of any size in, class ids out. fp32, no Ray, no data set.

An exported folder holds the same as ``config.yaml`` and ``model.safetensors``.
"""

from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raydelta.config import GeneratorConfig, Pixels, SegmenterConfig
from raydelta.data.pixels import to_float
from raydelta.data.taxonomy import Taxonomy
from raydelta.errors import UserError
from raydelta.networks import Generator, build_segmenter
from raydelta.networks.colours import Colours
from raydelta.networks.layers import freeze
from raydelta.networks.own_expert import OwnExpert
from raydelta.parsing import read_yaml, validated
from raydelta.results.evaluate import method_of
from raydelta.results.table import read_recommended
from raydelta.storage.bucket import as_local, fetch
from raydelta.storage.files import MOST_WEIGHTS, read_bytes, write_atomically
from raydelta.training.checkpoint import fill, read_config
from raydelta.training.job import BEST, Job, find_job, read_job
from raydelta.training.stage import is_beside, read_stage
from raydelta.training.trained import ensemble, load_segmenter, read_colours, read_generator

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
SMALLEST = 8  # pixels: at a quarter of it, the generator's reflection still has one to reflect


class ChainConfig(BaseModel):
    """One segmenter, and before it R2S or ``Colours`` if its photographs are translated or their colours matched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segmenter: SegmenterConfig
    generator: GeneratorConfig | None = None
    colours: bool = False


class DeployConfig(BaseModel):
    """What a deployed model is made of; with the weights, all that it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str  # the name of the training
    method: str | None = None  # its row of the table; None: exported by an older version
    taxonomy: Taxonomy
    width: Pixels  # of the images that it was trained on
    height: Pixels
    chains: Annotated[tuple[ChainConfig, ...], Field(min_length=1, max_length=16)]  # several: an ensemble

    @property
    def multiple(self) -> int:
        """What width and height of an image have to be multiples of inside."""
        return max(4, *(chain.segmenter.multiple for chain in self.chains))


class Chain(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] → logits (N, C, H, W)."""

    def __init__(self, segmenter: nn.Module, generator: nn.Module | None) -> None:
        """
        Args:
            generator: what images go through first: R2S or ``Colours``.
        """
        super().__init__()
        self.segmenter, self.generator = segmenter, generator

    def forward(self, images: Tensor) -> Tensor:
        if self.generator is not None:
            images = self.generator(images).clamp(-1, 1)
        return self.segmenter(images)


class Deployed(nn.Module):
    """Photographs uint8 (N, H, W, 3) of any size → ids uint8 (N, H, W); ``logits`` gives the scores."""

    def __init__(self, config: DeployConfig, chains: list[Chain]) -> None:
        super().__init__()
        self.config, self.chains = config, nn.ModuleList(chains)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).max(1).indices.byte()

    def logits(self, images: Tensor) -> Tensor:
        """Photographs uint8 (N, H, W, 3) → logits (N, C, H, W)."""
        return enlarge(self.networks(self.prepare(images)), *images.shape[1:3])

    def prepare(self, images: Tensor) -> Tensor:
        """``prepare`` for these networks."""
        return prepare(self.config, images)

    def networks(self, images: Tensor) -> Tensor:
        """Images (N, 3, h, w) in [-1, 1] → logits (N, C, h, w)."""
        return self.chains[0](images) if len(self.chains) == 1 else ensemble(list(self.chains))(images)


def prepare(config: DeployConfig, images: Tensor) -> Tensor:
    """Photographs uint8 (N, H, W, 3) → in [-1, 1], (N, 3, h, w), of the height that the networks know."""
    size = target_size(config, *images.shape[1:3])
    small = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    return to_float(small)


def target_size(config: DeployConfig, height: int, width: int) -> tuple[int, int]:
    """Height and width that a photograph is resized to: the height of training, and its own aspect ratio."""
    # Integers and sym_max, so that an exported program computes it for every size.
    step = config.multiple
    target = -(-max(config.height, SMALLEST) // step) * step
    count: Any = torch.sym_max((2 * width * target + height * step) // (2 * height * step), -(-SMALLEST // step))
    if torch.compiler.is_exporting():  # a plain unknown number, or the sizes of all layers become unwieldy
        count = torch.scalar_tensor(count, dtype=torch.int64).item()
        torch._check(count >= -(-SMALLEST // step))
    return target, count * step


def enlarge(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (N, C, h, w) → (N, C, H, W)."""
    return F.interpolate(logits, (height, width), mode="bilinear")


def read_network(path: str | Path, method: str | None = None) -> Deployed:
    """The module of a finished training, of a row of a sweep's table, or of an exported folder; on the CPU, in fp32.

    Args:
        method: as ``choose_job`` takes it.

    Raises:
        UserError: the folder is none of these, or something of it is missing.
    """
    path = as_local(path)
    if (path / CONFIG).exists():
        fetch(path)
    return _read_exported(path) if is_exported(path) and method is None else build(choose_job(path, method))


def choose_job(run: Path, method: str | None = None) -> Job:
    """The job of a finished training, or of a row of a sweep's table.

    Args:
        method: which row of a sweep; if None, the one that its table recommends, or *guided* if it recommends none.

    Raises:
        UserError: the directory is neither, or the sweep has not trained that row.
    """
    chosen = read_recommended(run) if method is None and (run / BEST).exists() else None
    if chosen is None:
        return find_job(run, method)
    stage = run.resolve().parent / chosen.stage if chosen.stage and is_beside(chosen.stage) else None
    if stage is not None and read_stage(stage) is not None:
        return read_job(stage)
    return find_job(run, chosen.method)  # an ensemble has no stage of its own


def is_exported(path: Path) -> bool:
    """Whether a folder is what ``raydelta export`` writes."""
    return (path / WEIGHTS).exists()


def build(job: Job) -> Deployed:
    """The model of a finished job."""
    taxonomy, data = job.taxonomy, job.config.data
    settings, chains = [], []
    for part in job.members if job.recipe.members else (job,):
        translates, matches = part.kind == "translator", part.kind == "colours matched"
        directory = part.expert if translates or matches else part.directory
        assert directory is not None
        segmenter = read_config(directory / "checkpoint").segmenter.model_copy(
            update={"weights": None, "encoder_rate": 1.0}
        )
        own = part.config.generator if translates else None
        settings.append(ChainConfig(segmenter=segmenter, generator=own, colours=matches))
        first = read_generator(part.directory, "r2s_ema") if translates else None
        first = read_colours(part.directory) if matches else first
        chains.append(Chain(load_segmenter(directory, len(taxonomy)), first))
    config = DeployConfig(
        run=job.directory.name,
        method=method_of(job),
        taxonomy=taxonomy,
        width=data.width,
        height=data.height,
        chains=tuple(settings),
    )
    return _ready(Deployed(config, chains))


def save(model: Deployed, folder: Path) -> None:
    """Write what ``load`` reads.

    Raises:
        UserError: it has an expert of the user's, of which only the file is known.
    """
    if any(isinstance(chain.segmenter, OwnExpert) for chain in model.chains if isinstance(chain, Chain)):
        raise UserError(
            f"{model.config.run}: its expert is a network of your own, which an exported folder cannot hold; "
            "raydelta.load and raydelta predict take the run itself, and raydelta export --preprocessor writes what "
            "goes in front of it"
        )
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(weights))
    write_atomically(folder / CONFIG, yaml.safe_dump(model.config.model_dump(mode="json"), sort_keys=False))


def _read_exported(path: Path) -> Deployed:
    config = validated(DeployConfig, read_yaml(path / CONFIG), str(path / CONFIG))

    def make() -> Deployed:
        chains = []
        for chain in config.chains:
            generator = Generator(chain.generator) if chain.generator else Colours() if chain.colours else None
            chains.append(Chain(build_segmenter(chain.segmenter, len(config.taxonomy), pretrained=False), generator))
        return Deployed(config, chains)

    try:
        weights = safetensors.torch.load(read_bytes(str(path / WEIGHTS), MOST_WEIGHTS))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS}: damaged; export again: {error}") from error
    model = fill(make, weights, f"{path / WEIGHTS}: damaged, or not of {CONFIG} beside it; export again")
    assert isinstance(model, Deployed)
    return _ready(model)


def _ready(model: Deployed) -> Deployed:
    freeze(model)
    return model
