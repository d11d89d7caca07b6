"""The rows of the table: what each is trained on, or which trainings it combines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

from raydelta.config import Config
from raydelta.errors import UserError

Compared = Literal[
    "blended",
    "colours matched",
    "ensemble",
    "ensemble, untranslated",
    "from scratch",
    "fine-tuned",
    "joint training",
    "randomised",
    "FDA",
    "translated only",
    "student",
    "pseudo-labels",
    "mean teacher",
    "mean teacher, translated",
    "taught student",
    "oracle",
]
"""What the translator is compared with."""

MethodName = Literal[
    "unguided",
    "guided",
    "taught",
    Compared,
    "mean teacher, two views",
    "guided, shuffled labels",
    "joint training, shuffled labels",
]
"""Rows of the table; ``METHODS`` says what each is made of."""

Kind = Literal["expert", "translator", Compared]


@dataclass(frozen=True)
class Recipe:
    """What one training is made of. With members: an ensemble of other trainings, which trains nothing itself."""

    section: Literal["expert", "translator", "adaptation", "student"] = "student"  # of the config: steps, batch, rates
    start: Literal["expert", "scratch", "student"] = "expert"
    synthetic: Literal["plain", "translated", "FDA", "randomised"] | None = None
    labels: Literal["budget", "all", "none"] = "budget"
    teacher: Literal["average", "ensemble", "agreement"] | None = None  # of the unlabelled photographs, if any
    members: tuple[Kind, ...] = ()

    @property
    def photographs(self) -> bool:
        """Whether it trains on photographs without labels."""
        return self.section in ("translator", "adaptation") or self.teacher is not None or self.synthetic == "FDA"

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections of the config that decide its result, the seed included."""
        if self.members:
            return ("seed", "labels")
        own = {
            "expert": ("augment", "segmenter", "expert"),
            "translator": ("labels", "augment", "generator", "discriminator", "translator", "guidance", "cycle"),
            "adaptation": ("adaptation",),
            "student": ("labels", "augment", "segmenter", "student"),
        }[self.section]
        own += ("appearance",) * (self.synthetic not in (None, "plain"))
        return ("seed", *own, *("self_training",) * (self.teacher is not None))

    def batches(self, config: Config) -> dict[str, int]:
        """Images a step from each stream, over all workers."""
        if self.section == "expert":
            return {"synthetic": config.expert.batch}
        if self.section == "translator":
            batches = dict.fromkeys(("synthetic", "real"), config.translator.batch)
            if config.guidance.weight > 0:
                taught = config.guidance.batch // 2 if config.guidance.teacher is not None else 0
                batches |= {"real": batches["real"] + taught, "labelled": config.guidance.batch - taught}
            return batches
        if self.section == "adaptation":
            return dict.fromkeys(["synthetic"] * (self.synthetic is not None) + ["real"], config.adaptation.batch)
        supervised = ["synthetic"] * (self.synthetic is not None) + ["labelled"] * (self.labels != "none")
        half = {"real": config.student.batch // 2} if self.photographs else {}
        return dict.fromkeys(supervised, config.student.batch // len(supervised)) | half


RECIPES: dict[Kind, Recipe] = {
    "expert": Recipe("expert", "scratch", "plain", labels="none"),
    "translator": Recipe("translator", "scratch", "plain"),
    "blended": Recipe("adaptation", labels="none"),
    "colours matched": Recipe("adaptation", synthetic="plain", labels="none"),
    "from scratch": Recipe(start="scratch"),
    "fine-tuned": Recipe(),
    "joint training": Recipe(synthetic="plain"),
    "randomised": Recipe(synthetic="randomised"),
    "FDA": Recipe(synthetic="FDA"),
    "translated only": Recipe(synthetic="translated", labels="none"),
    "student": Recipe(synthetic="translated"),
    "pseudo-labels": Recipe(start="student", synthetic="translated", teacher="ensemble"),
    "mean teacher": Recipe(synthetic="plain", teacher="average"),
    "mean teacher, translated": Recipe(synthetic="translated", teacher="average"),
    "taught student": Recipe(synthetic="plain", teacher="agreement"),
    "oracle": Recipe(synthetic="plain", labels="all"),
    "ensemble": Recipe(members=("translator", "student")),
    "ensemble, untranslated": Recipe(members=("joint training", "mean teacher")),
}
"""``student`` against ``joint training`` is the control for translation: they differ only in the synthetic images
that are swapped for translated ones. ``ensemble, untranslated`` is the control for what two networks are worth anyway.
The expert on untranslated photographs is no member: it is confident where it is wrong, which cost three points."""


Family = Literal["frozen", "retrained"]
"""Whether the expert stays as it is, or may be trained on."""


@dataclass(frozen=True)
class Method:
    """A row of the table: a kind of training, and the config fields that it sets."""

    kind: Kind
    overrides: Mapping[str, Any] = field(default_factory=dict)
    family: Family = "retrained"


UNGUIDED = {"guidance.weight": 0.0}
SHUFFLED = {"labels.shuffle": True}
TAUGHT = {"guidance.teacher": "mean teacher"}
TWO_VIEWS = {"self_training.mixing": "boxes", "self_training.views": 2, "self_training.confidence": 0.95}
METHODS: dict[str, Method] = {
    "unguided": Method("translator", UNGUIDED, "frozen"),
    "guided": Method("translator", {"guidance.teacher": None}, "frozen"),
    "taught": Method("translator", TAUGHT, "frozen"),
    **{name: Method(name) for name in get_args(Compared)},
    "blended": Method("blended", family="frozen"),
    "colours matched": Method("colours matched", family="frozen"),
    "mean teacher, two views": Method("mean teacher", TWO_VIEWS),
    "guided, shuffled labels": Method("translator", SHUFFLED, "frozen"),
    "joint training, shuffled labels": Method("joint training", SHUFFLED),
}


def short_name(method: str) -> str:
    """``mean teacher, translated`` → ``mean-teacher-translated``: a row's name on the command line."""
    return method.lower().replace(",", "").replace(" ", "-")


def find_method(name: str, among: Iterable[str] = tuple(METHODS)) -> str:
    """The row of the table of that name, short or as the table prints it.

    Args:
        among: the rows there are to choose from.

    Raises:
        UserError: there is none; the message names the nearest one and all there are.
    """
    known = {short_name(method): method for method in among}
    asked = short_name(str(name))
    if asked in known:
        return known[asked]
    if asked in map(short_name, METHODS):
        raise UserError(f"{asked} was not trained there; trained are {', '.join(known) or 'none'}")
    near = get_close_matches(asked, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"no method {name!r}: {hint}there are {', '.join(known) or 'none'}")


def family_of(row: str) -> Family:
    """The family of a row of the table; a row of a replay (``guided, entropy``) has that of its method."""
    if row == "synthetic only":
        return "frozen"
    method = METHODS.get(row) or METHODS.get(row.rpartition(", ")[0])
    return method.family if method is not None else "retrained"
