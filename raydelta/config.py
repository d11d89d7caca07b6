"""The typed config tree: defaults, then a preset, a YAML file and ``a.b=c`` overrides; later ones win.

Every setting of every stage is a field here. The resolved tree is written beside every checkpoint.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from raydelta.errors import UserError
from raydelta.parsing import merge, nest, parse_override, read_yaml, validated

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Pixels = Annotated[int, Field(ge=32, le=8192, multiple_of=16)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0, le=1)]

PRESETS = Path(__file__).parent / "presets"
BUILT_IN_SETS: dict[str, Literal["synthetic", "street"]] = {"simulated": "synthetic", "street": "street"}
"""Name in the config → look of the simulator. ``street`` is the stand-in for photographs."""


class Section(BaseModel):
    """A frozen group of fields that refuses unknown ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SECRET = ("key", "secret", "token", "password", "signature", "credential")
"""Words in the names of address options that hold secrets."""


class DataConfig(Section):
    """Which images. ``simulated`` and ``street`` are built in and made on first use; anything else is a data set."""

    synthetic: str = "simulated"
    real: str = "street"
    width: Pixels = 128
    height: Pixels = 64
    synthetic_images: Positive = 800  # the built-in sets only
    real_images: Positive = 400
    test_images: Positive = 100
    cache_gib: Weight = 4.0  # a split whose decoded pixels fit is held in memory, a larger one streams

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of every image, in pixels."""
        return self.width, self.height

    @model_validator(mode="after")
    def _without_secrets(self) -> Self:
        """The config is written into every run directory."""
        for name, address in (("synthetic", self.synthetic), ("real", self.real)):
            _refuse_secrets(f"data.{name}", address, "your storage's variables (AWS_SECRET_ACCESS_KEY, …)")
        return self


def _refuse_secrets(field: str, address: str, instead: str) -> None:
    for part in address.split("::"):
        parts = urlsplit(part) if "://" in part else urlsplit("")
        options = {key.lower() for key, _ in parse_qsl(parts.query, keep_blank_values=True)}
        container = parts.scheme in ("abfs", "abfss")  # stands where others have the user
        secret = parts.password or (parts.username and not container and parts.scheme not in ("hdfs", "viewfs"))
        if secret or any(word in key for key in options for word in SECRET) or "sig" in options:
            raise ValueError(
                f"{field}: the address on {parts.hostname} holds a password or key, which would be written into every "
                f"run directory; set {instead} instead"
            )


class LabelCells(Section):
    """Images of which only some cells are labelled. The rest of their label is void, whatever the data set holds."""

    grid: tuple[Positive, Positive]  # columns and rows
    images: dict[str, Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]]  # cells, row by row

    @model_validator(mode="after")
    def _on_the_grid(self) -> Self:
        columns, rows = self.grid
        for name, cells in self.images.items():
            if max(cells) >= columns * rows or len(set(cells)) < len(cells):
                raise ValueError(
                    f"labels.ids: cells of {name}: {list(cells)}: name each cell once, 0 to {columns * rows - 1} (the "
                    f"grid is {columns}x{rows})"
                )
        return self


class LabelIds(Section):
    """Bought labels by the ids of their images, in the order in which they were bought; from a YAML file."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()  # none: the seeded ones
    cells: LabelCells | None = None  # None: every image is labelled as a whole

    @model_serializer(mode="wrap")
    def _without_no_cells(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without cells it is written as before there were cells, so that stages keep their names."""
        return {name: value for name, value in serialise(self).items() if name != "cells" or value is not None}

    @model_validator(mode="after")
    def _cells_of_trained_images(self) -> Self:
        other = sorted(set(self.cells.images if self.cells else ()) - set(self.train))
        if other:
            raise ValueError(f"labels.ids: cells of {', '.join(other[:5])}: not among the images under train:")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        twice = sorted(name for name, count in Counter([*self.train, *self.validation]).items() if count > 1)
        if twice:
            raise ValueError(f"labels.ids: named more than once: {', '.join(twice[:5])}")
        return self


def _read_ids(value: Any) -> Any:
    """The content of a file in place of its name: a config says which labels it means, not where they were listed."""
    if isinstance(value, str):
        return validated(LabelIds, read_yaml(value), where=value)
    return validated(LabelIds, dict(value)) if isinstance(value, Mapping) else value


class LabelConfig(Section):
    """The label budget. Label sets are seeded and nested; validation labels come first and are counted too."""

    budget: Annotated[int, Field(ge=0)] = 14
    validation: Annotated[int, Field(ge=0)] = 8
    ids: Annotated[LabelIds | None, BeforeValidator(_read_ids)] = None  # a YAML file; the first labels.budget ids train
    shuffle: bool = False  # a control: every training image gets the label of another one


class AugmentConfig(Section):
    """Random augmentation on the training device, image and label under one geometry."""

    flip: Share = 0.5
    crop: Annotated[float, Field(gt=0, le=1)] = 0.7  # what is translated: least share of the area that a crop keeps
    zoom: Annotated[float, Field(ge=1, le=8)] = 2.0  # segmenters, guidance: 1/zoom to zoom times as large, mirrored
    colour: Share = 0.5  # the same: brightness, contrast, saturation, white balance, grey and blur


def _is_path(weights: str) -> bool:
    return "/" in weights or "." in weights


def _absolute(weights: str | None) -> str | None:
    """A path as seen from anywhere: a worker has another current folder."""
    return str(Path(weights).expanduser().absolute()) if weights is not None and _is_path(weights) else weights


class SegmenterConfig(Section):
    """``lean``, or any segmentation-models-pytorch architecture. ``weights: null`` trains from scratch, no download."""

    architecture: str = "unet"
    width: Annotated[int, Field(ge=6, le=3072, multiple_of=6)] = 24  # channels after the first layer of ``lean``
    encoder: str = "timm-regnetx_002"
    weights: Annotated[str | None, AfterValidator(_absolute)] = None  # a file or folder, or a name that is downloaded
    encoder_rate: Share = 1.0  # learning rate of the encoder ÷ that of the rest; 0: its weights stay as they are
    depth: Annotated[int, Field(ge=3, le=5)] = 4
    decoder_channels: tuple[Channels, ...] = (64, 32, 16, 8)  # U-Net-like decoders only, one per depth

    @property
    def multiple(self) -> int:
        """Width and height of images are multiples of it, in pixels."""
        return 32 if self.architecture.lower() == "dpt" else 2**self.depth

    @property
    def weights_file(self) -> Path | None:
        """The file or folder of pre-trained weights; None: there are none, or they are downloaded by their name."""
        return Path(self.weights) if self.weights is not None and _is_path(self.weights) else None

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.encoder_rate == 0 and self.weights is None:
            raise ValueError(
                "segmenter.encoder_rate = 0: the encoder would stay untrained; name its weights (segmenter.weights)"
            )
        if self.architecture.lower() == "dpt" and self.depth != 4:
            raise ValueError(f"segmenter.depth = {self.depth}: dpt takes four layers of its encoder; set it to 4")
        return self


class ExpertConfig(Section):
    """Training of the expert on synthetic images."""

    steps: Positive = 900
    batch: Positive = 16  # over all workers
    learning_rate: Rate = 2e-3
    appearance: Literal["randomised", "plain"] = "randomised"  # plain: colours as the simulator draws them
    model: str | None = None  # file or folder of a network of yours that is the expert; nothing is trained then
    outputs: tuple[str, ...] | None = None  # names of its classes in order; None: those of the synthetic set
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pixels in [0, 1], subtracted before it
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)  # and divided by
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99  # the averaged weights are the expert


class GeneratorConfig(Section):
    """ResNet generator of Johnson et al. 2016, as in CycleGAN."""

    width: Positive = 12
    blocks: Annotated[int, Field(ge=0, le=1000)] = 4
    identity_start: bool = True  # the untrained generator returns its input, not noise


class DiscriminatorConfig(Section):
    """PatchGAN of Isola et al. 2017: three layers see patches of 70 pixels, two of 34."""

    width: Positive = 16
    layers: Annotated[int, Field(ge=1, le=3)] = 2


class TranslatorConfig(Section):
    """Training of the guided CycleGAN."""

    steps: Positive = 160
    batch: Positive = 1  # of each domain, over all workers
    learning_rate: Rate = 4e-4
    discriminator_learning_rate: Rate = 2e-4
    decay: Share = 0.5  # share of the steps, at the end, over which the rates fall to zero
    pool: Annotated[int, Field(ge=0)] = 50
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    start: str | None = None  # a finished translator in the same runs directory, by name, whose weights are the first


class GuidanceConfig(Section):
    """L = (1 - weight) · CycleGAN + weight · scale · (cross entropy + dice · Dice loss) through the expert."""

    weight: Share = 0.5
    start: Share = 0.0  # share of the steps before guidance sets in
    scale: Weight = 1.0
    batch: Positive = 8  # labelled images a step, over all workers
    dice: Weight = 1.0  # weight of the Dice loss, in which a rare class counts as much as a common one
    teacher: Literal["joint training", "mean teacher", "taught student"] | None = None  # whose labels guide too
    confidence: Share = 0.0  # pixels for which the teacher is less sure do not guide
    strength: Share = 1.0  # guidance sees x + u·(R2S(x) - x) with u random from this to 1


class CycleConfig(Section):
    """Cycle weights of the two domains, and the identity weight as a fraction of each."""

    real: Weight = 10.0
    synthetic: Weight = 10.0
    identity: Weight = 0.5


class StudentConfig(Section):
    """Training of the segmenters for photographs: the student, and all it is compared with on the same labels."""

    steps: Positive = 80
    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 16  # half of it synthetic where there are synthetic images
    learning_rate: Rate = 1e-3  # from the expert
    learning_rate_scratch: Rate = 2e-3
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99  # the averaged weights are the student, and the mean teacher


class AppearanceConfig(Section):
    """How synthetic images are made to look before a student sees them."""

    translated: Share = 0.5  # share that goes through S2R, where a method translates; the rest stays as it is
    bandwidth: Annotated[float, Field(gt=0, le=0.5)] = 0.02  # FDA: share of the frequencies whose amplitude is swapped
    strength: Share = 0.5  # of the photometric randomisation


class SelfTrainingConfig(Section):
    """Pseudo-labels on the unlabelled photographs; weighting and mixing are of the mean teacher's."""

    weight: Weight = 1.0
    confidence: Share = 0.9  # from which on a teacher is sure of a pixel
    start: Share = 0.2  # share of the steps before the mean teacher's labels count
    weighting: Literal["threshold", "share"] = "threshold"  # what it is not sure of: void, or all weighted by the share
    mixing: Literal["classes", "boxes"] = "classes"  # what is pasted: of images with labels, or of other photographs
    views: Annotated[int, Field(ge=1, le=2)] = 1  # differently mixed and coloured, of each photograph


class AdaptationConfig(Section):
    """The expert with statistics of photographs, in its batch norms or to match colours; no weight changes."""

    steps: Positive = 20  # batches that the statistics are taken from
    batch: Positive = 16  # over all workers
    share: Share = 0.5  # of the photographs' statistics in the blended batch norms


class ComputeConfig(Section):
    """How a training runs. Of these fields only the precision changes what it computes."""

    # Data-parallel processes of one training; [least, most] as nodes come and go; None: one node's GPUs, or one CPU
    workers: Positive | tuple[Positive, Positive] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware multiplies it
    compile: bool = False
    report_every: Positive = 50  # steps between two reports, each with a validation
    checkpoint_every: Positive = 200

    @model_validator(mode="after")
    def _range(self) -> Self:
        if isinstance(self.workers, tuple) and not self.workers[0] < self.workers[1]:
            raise ValueError(f"compute.workers = {list(self.workers)}: give the least first, then the most")
        return self


class TrackingConfig(Section):
    """Experiment trackers, none by default. No result depends on them."""

    mlflow: str | None = None  # address of a tracking server, or sqlite:///mlflow.db
    wandb: str | None = None  # PROJECT or ENTITY/PROJECT of Weights & Biases

    @model_validator(mode="after")
    def _without_secrets(self) -> Self:
        if self.mlflow is not None:
            _refuse_secrets("tracking.mlflow", self.mlflow, "MLFLOW_TRACKING_USERNAME and …_PASSWORD, or …_TOKEN,")
        return self


class Config(Section):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = DataConfig()
    labels: LabelConfig = LabelConfig()
    augment: AugmentConfig = AugmentConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    expert: ExpertConfig = ExpertConfig()
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    translator: TranslatorConfig = TranslatorConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    cycle: CycleConfig = CycleConfig()
    student: StudentConfig = StudentConfig()
    appearance: AppearanceConfig = AppearanceConfig()
    self_training: SelfTrainingConfig = SelfTrainingConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _from_before(cls, tree: Any) -> Any:
        """``self_training.ema`` is ``student.ema`` now: configs beside older checkpoints have the former."""
        if isinstance(tree, Mapping) and isinstance(tree.get("self_training"), Mapping):
            settings = dict(tree["self_training"])
            if "ema" in settings and isinstance(tree.get("student", {}), Mapping):
                student = {"ema": settings.pop("ema"), **tree.get("student", {})}
                return {**tree, "self_training": settings, "student": student}
        return tree

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, pixels in (("data.width", self.data.width), ("data.height", self.data.height)):
            if pixels % self.segmenter.multiple:
                rule = (
                    "32 for segmenter.architecture = dpt"
                    if self.segmenter.multiple != 2**self.segmenter.depth
                    else f"2 to the segmenter.depth = {self.segmenter.depth}"
                )
                raise ValueError(f"{name} = {pixels} must be a multiple of {rule}")
        return self


def load_config(
    preset: str | None = None, file: str | Path | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()
) -> Config:
    """Defaults, then the preset, then the file, then the overrides (``a.b=c`` strings or a dotted mapping).

    Raises:
        UserError: an unknown key or a bad value; the message names the field, its value and what is allowed.
    """
    tree: dict[str, Any] = {}
    if preset is not None:
        merge(tree, read_yaml(_preset_file(preset)))
    if file is not None:
        merge(tree, read_yaml(file))
    dotted = overrides if isinstance(overrides, Mapping) else dict(map(parse_override, overrides))
    for key, value in dotted.items():
        merge(tree, nest(key, value))
    return validated(Config, tree)


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of the config with dotted keys replaced, checked like any other input."""
    tree = config.model_dump()
    for key, value in values.items():
        merge(tree, nest(key, value))
    return validated(Config, tree)


def without_tracking(config: Config) -> Config:
    """A copy without trackers, for files: whoever uses the file must not report to its author."""
    return config.model_copy(update={"tracking": TrackingConfig()})


def save_config(config: Config, path: Path) -> None:
    """Write the resolved tree as YAML."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _preset_file(name: str) -> Path:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"preset {name!r} does not exist; there are: {', '.join(sorted(p.stem for p in PRESETS.glob('*.yaml')))}"
        )
    return path
