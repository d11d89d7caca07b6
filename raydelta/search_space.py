"""Search spaces: YAML files of the shape of ``Space``, the shipped ones in ``tune_spaces/``."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raydelta.config import Positive, Section, Share, load_config
from raydelta.errors import UserError
from raydelta.parsing import merge, nest, parse_override, read_yaml, validated
from raydelta.recipes import METHODS, RECIPES, MethodName, find_method

SPACES = Path(__file__).parent / "tune_spaces"
SEARCHABLE = ("labels", "augment", "generator", "discriminator", "translator", "guidance", "cycle")
"""Sections that a trial may vary: what decides the translator, but not the expert that all trials share.

Not the seed either: it decides which labels validate, and trials on other validation images cannot be compared.
"""

DEFAULT_METHODS: tuple[MethodName, ...] = (
    "unguided",
    "guided",
    "fine-tuned",
    "from scratch",
    "joint training",
    "oracle",
)


class Dimension(Section):
    """How one field is searched: exactly one of the four."""

    choice: list[Any] | None = None
    grid: list[Any] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}, not {sorted(given) or 'none'}")
        (kind, value) = next(iter(given.items()))
        if len(value) == 0 or (kind.endswith("uniform") and not value[0] < value[1]):
            raise ValueError(f"{kind}: {value} is empty")
        return self

    def corners(self) -> list[Any]:
        """Values that are valid only if all are."""
        return next(iter(self.model_dump(exclude_none=True).values()))

    def sampler(self) -> Any:
        """The Ray Tune form."""
        from ray import tune

        kind, value = next(iter(self.model_dump(exclude_none=True).items()))
        if kind == "grid":
            return tune.grid_search(value)
        return tune.choice(value) if kind == "choice" else getattr(tune, kind)(*value)


class Resources(Section):
    """What one trial takes. ``compute.workers`` is the expert's; a trial's are here."""

    workers: Positive = 1  # more than one: Ray Train inside the trial
    cpus: Positive = 1  # for each worker
    gpus: Annotated[float, Field(ge=0)] | None = None  # None: one where the cluster has GPUs; fractions share one
    accelerator_type: str | None = None  # of the GPU, in Ray's words: T4, L4, A100, H100, …
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})  # of ``ray start --resources``, a worker

    @property
    def others(self) -> dict[str, float]:
        """What a worker reserves beside CPUs and GPUs."""
        kind = {f"accelerator_type:{self.accelerator_type}": 0.001} if self.accelerator_type else {}
        return kind | self.custom

    @model_serializer(mode="wrap")
    def _without_no_others(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without them it is written as before they were there, so that sweeps keep their names."""
        return {
            name: value
            for name, value in serialise(self).items()
            if value or name not in ("accelerator_type", "custom")
        }

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        known = {"CPU": "resources.cpus", "GPU": "resources.gpus", "memory": "nothing, it is not reserved"}
        for name in self.custom:
            if name in known or name.startswith(("accelerator_type:", "node:")):
                raise ValueError(
                    f"resources.custom.{name}: Ray's own; use {known.get(name, 'resources.accelerator_type')}"
                )
        return self

    @model_validator(mode="after")
    def _one_gpu_a_worker(self) -> Self:
        gpus = self.gpus or 0
        if gpus > 1:
            raise ValueError(
                f"resources.gpus = {gpus:g}: a worker uses one GPU; set gpus: 1 and workers: {round(gpus)}"
            )
        if 0 < gpus < 1 and self.workers > 1:
            raise ValueError(
                f"resources.gpus = {gpus:g} with {self.workers} workers: workers of one training cannot share a GPU; "
                "set gpus: 1, or workers: 1"
            )
        return self


class TableConfig(Section):
    """What is trained after the sweep, with the best trial's settings, to compare it with."""

    methods: tuple[Annotated[MethodName, BeforeValidator(find_method)], ...] = DEFAULT_METHODS
    budgets: tuple[Positive, ...] | None = None  # None: the best trial's
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # None: the best trial's


StrategyName = Literal[
    "combined",
    "random",
    "stride",
    "typical",
    "entropy",
    "margin",
    "ripu",
    "disagreement",
    "committee",
    "reconstruction",
    "coverage",
    "rarity",
    "ripu-cells",
    "random-cells",
]
"""How photographs are chosen; what each is stands in ``strategies.STRATEGIES``."""

TRANSLATING: tuple[StrategyName, ...] = ("disagreement", "committee", "reconstruction")
"""Strategies that compare translations: a translator chooses with them."""


class ReplayConfig(Section):
    """Labels bought round by round, on photographs whose labels are known, in place of seeded ones for the table.

    The first method of the table chooses.
    """

    strategies: tuple[StrategyName, ...] = ("random", "combined")
    budgets: Annotated[tuple[Positive, ...], Field(min_length=2)] = (8, 16, 32, 64)  # labels after each round
    steps: Positive | None = None  # of a round, from the last one's weights; None: every round is trained anew
    window: Positive = 5  # of so many frames that follow each other, a round buys one

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"replay.budgets = {list(self.budgets)}: every round has to add labels")
        return self


class Space(Section):
    """A search space file."""

    config: dict[str, Any] = Field(default={})  # fixed fields, dotted, under all trials and the expert
    search: dict[str, Dimension] = Field(default={})  # nothing: no sweep, straight to the table
    algorithm: Literal["random", "optuna", "hyperopt"] = "random"  # who draws the trials
    scheduler: Literal["halving", "asha", "none"] = "halving"  # asha, Ray Tune's: trials never wait for others
    grace: Share = 0.25  # share of the steps that every trial may run before it is stopped
    reduction: Annotated[int, Field(ge=2)] = 3  # of so many, one goes on
    trials: Positive = 8  # samples; times the grid, if there is one
    concurrent: Positive | None = None  # at most so many at once; None: what fits
    resources: Resources = Resources()
    table: TableConfig = TableConfig()
    replay: ReplayConfig | None = None

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> Self:
        if self.replay is not None and self.table.budgets is not None:
            raise ValueError("table.budgets: replay.budgets says how many labels there are; leave one of them out")
        unbought = set(self.table.methods) & {"unguided", "translated only", "oracle"}
        if self.replay is not None and unbought:
            raise ValueError(f"table.methods: {', '.join(sorted(unbought))}: a replay compares what bought labels do")
        if self.replay is not None:
            self._check_chooser(self.replay, self.table.methods[0])
        return self

    @staticmethod
    def _check_chooser(replay: ReplayConfig, method: MethodName) -> None:
        recipe = RECIPES[METHODS[method].kind]
        if recipe.labels != "budget" or recipe.members:
            raise ValueError(f"table.methods: {method} is the first, so it chooses, but no label teaches it")
        if recipe.section == "translator":
            return
        if replay.steps is not None:
            raise ValueError(f"replay.steps = {replay.steps}: {method} is trained anew in every round; leave it out")
        taking = [name for name in replay.strategies if name in TRANSLATING]
        if taking:
            raise ValueError(
                f"replay.strategies: {', '.join(taking)}: compare translations; name a translator, such as guided, "
                "first under table.methods: it chooses"
            )

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        for key, dimension in self.search.items():
            if key.split(".")[0] not in SEARCHABLE:
                raise ValueError(
                    f"search.{key}: trials share one expert and one validation set, so a space may search "
                    f"{', '.join(SEARCHABLE)}; set {key} under config: instead, seeds under table.seeds"
                )
            if dimension.grid is not None and self.algorithm != "random":
                raise ValueError(f"search.{key}: {self.algorithm.title()} takes choice, not grid")
        if self.algorithm != "random" and self.scheduler == "halving":
            raise ValueError(
                f"scheduler: halving begins all trials before one ends, and {self.algorithm.title()} learns from ended "
                "ones; take asha"
            )
        return self


def within_labels(space: Space, available: int) -> Space:
    """The space without the label budgets that a data set cannot give; a warning names them.

    Args:
        available: labelled training photographs that do not validate.

    Raises:
        UserError: no budget is left.
    """
    dimension, budgets = space.search.get("labels.budget"), space.table.budgets
    kind = "grid" if dimension is not None and dimension.grid is not None else "choice"
    searched = getattr(dimension, kind, None)
    asked = {place: list(values) for place, values in (("search", searched), ("table", budgets)) if values is not None}
    left = {place: [budget for budget in values if budget <= available] for place, values in asked.items()}
    beyond = sorted({budget for values in asked.values() for budget in values if budget > available})
    if not beyond:
        return space
    named = f"{' and '.join(map(str, beyond))} labels are more than the {available} that validation leaves"
    if not all(left.values()):
        raise UserError(f"{named}: label more, or set smaller budgets in a space of your own")
    warnings.warn(f"{named}: left out of the space", stacklevel=2)
    tree = space.model_dump(exclude_none=True)
    if searched is not None:
        tree["search"]["labels.budget"] = {kind: left["search"]}
    if budgets is not None:
        tree["table"]["budgets"] = left["table"]
    return Space(**tree)


def open_space(name: str, overrides: Iterable[str] = ()) -> tuple[Space, dict[str, Any]]:
    """A space with what the overrides change of it (``trials=4``), and the config fields among them.

    Raises:
        UserError: as ``load_space``, or an override is not of the form field=value.
    """
    given = dict(map(parse_override, overrides))
    of_space = {key: value for key, value in given.items() if key.split(".")[0] in Space.model_fields}
    return load_space(name, of_space), {key: value for key, value in given.items() if key not in of_space}


def load_space(name: str, changes: Mapping[str, Any] | None = None) -> Space:
    """A shipped space by name (``laptop``), or one by its file.

    Args:
        changes: dotted fields of the space that are set over those of the file.

    Raises:
        UserError: no such space, an unknown key, or a value that the config does not allow; named one by one.
    """
    path = SPACES / f"{name}.yaml" if (SPACES / f"{name}.yaml").is_file() else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SPACES.glob("*.yaml")))
        raise UserError(f"search space {name!r} is neither a file nor one of the shipped ones: {shipped}")
    tree = read_yaml(path)
    for key, value in (changes or {}).items():
        searched = key.removeprefix("search.")  # dimensions are named by dotted fields, not nested
        merge(tree, nest(key, value) if searched == key else {"search": {searched: value}})
    space = validated(Space, tree, where=str(path))
    for key, dimension in space.search.items():
        for value in dimension.corners():
            try:
                load_config(overrides=space.config | {key: value})
            except UserError as error:
                raise UserError(f"{path}: search.{key}: {error}") from error
    return space
