"""The rows of the table: what each is trained on, or which trainings it puts together. One line for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Compared = Literal[
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
    "oracle",
]
"""What the translator is compared with."""

MethodName = Literal["unguided", "guided", Compared, "guided, shuffled labels", "joint training, shuffled labels"]
"""Rows of the table; ``METHODS`` says what each is made of."""

Kind = Literal["expert", "translator", Compared]


@dataclass(frozen=True)
class Recipe:
    """What a segmenter for photographs is trained on."""

    start: Literal["expert", "scratch", "student"]
    synthetic: Literal["plain", "translated", "FDA", "randomised"] | None = None  # half of every batch, if any
    labels: Literal["budget", "all", "none"] = "budget"
    teacher: Literal["average", "ensemble"] | None = None  # of the unlabelled photographs, if any

    @property
    def photographs(self) -> bool:
        """Whether it looks at photographs without labels."""
        return self.teacher is not None or self.synthetic == "FDA"


RECIPES: dict[str, Recipe] = {
    "from scratch": Recipe("scratch"),
    "fine-tuned": Recipe("expert"),
    "joint training": Recipe("expert", "plain"),
    "randomised": Recipe("expert", "randomised"),
    "FDA": Recipe("expert", "FDA"),
    "translated only": Recipe("expert", "translated", labels="none"),
    "student": Recipe("expert", "translated"),
    "pseudo-labels": Recipe("student", "translated", teacher="ensemble"),
    "mean teacher": Recipe("expert", "plain", teacher="average"),
    "mean teacher, translated": Recipe("expert", "translated", teacher="average"),
    "oracle": Recipe("expert", "plain", labels="all"),
}
"""The rows of the table that are one segmenter. ``student`` against ``joint training`` is the control for translation:
they differ in nothing but the synthetic images that are swapped for translated ones."""


ENSEMBLES: dict[str, tuple[Kind, ...]] = {
    "ensemble": ("translator", "student"),
    "ensemble, untranslated": ("joint training", "mean teacher"),
}
"""The rows that are several trainings together; the second is the control for what two networks are worth anyway. The
expert on untranslated photographs is no member: it is confident where it is wrong, and cost three points."""


@dataclass(frozen=True)
class Method:
    """A row of the table: which job, under which fields."""

    kind: Kind
    overrides: Mapping[str, Any] = field(default_factory=dict)


UNGUIDED = {"guidance.weight": 0.0}
SHUFFLED = {"labels.shuffle": True}
METHODS: dict[str, Method] = {
    "unguided": Method("translator", UNGUIDED),
    "guided": Method("translator"),
    **{name: Method(name) for name in (*ENSEMBLES, *RECIPES)},  # type: ignore[arg-type]
    "guided, shuffled labels": Method("translator", SHUFFLED),
    "joint training, shuffled labels": Method("joint training", SHUFFLED),
}
