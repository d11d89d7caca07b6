"""Which row of a table to use, by a rule over the validation labels; the test images decide nothing.

1. A row takes part if its images are labelled for validation, it is no control (shuffled labels) and not the oracle.
   Of a method with several label budgets only the largest takes part.
2. A row's score is its mean validation mIoU over the seeds, its bound the lower end of the 80 % interval (Student's t).
   One seed has no spread, so its interval is ``ONE_SEED`` points to each side.
3. The leader is the row with the highest bound. A row ties with it if the interval of their difference, paired by
   seed, reaches zero.
4. Of the leader and what ties with it, the cheapest is recommended: at inference (fewest generators, then fewest
   segmenters), then to train (device-hours), then the highest bound.

The rule is applied to each family by itself, and to both together.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import mean, stdev

from pydantic import BaseModel

from raydelta.recipes import METHODS, RECIPES, Family, family_of
from raydelta.results.row import Row

ONE_SEED = 2.0
"""Points of mIoU that one seed cannot tell from chance."""

T_90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383)
"""90 % quantile of Student's t for 1 to 9 degrees of freedom."""
NORMAL_90 = 1.282

ORACLE = "oracle"


class Recommended(BaseModel):
    """One recommended row, with what speaks for it."""

    method: str
    family: Family
    labels_train: int
    seeds: int
    stage: str | None  # the training of its first seed
    validation: float  # mIoU on the validation labels, percent, mean over the seeds
    low: float  # interval of the mean, percent
    high: float
    ties: list[str]  # methods that the validation labels cannot tell from it

    @property
    def shown(self) -> str:
        """Its validation mIoU with the interval."""
        return f"{self.validation:.1f} % (80 % interval {self.low:.1f} to {self.high:.1f})"

    @property
    def sentence(self) -> str:
        """Its name, its validation mIoU and what ties with it."""
        labels = f" with {self.labels_train} labels" if self.labels_train else ""
        ties = f"; ties with {' and '.join(self.ties)}" if self.ties else ""
        return f"{self.method}{labels}: {self.shown} on the validation labels{ties}"


class Recommendation(BaseModel):
    """The recommended rows: of each family, and of both together."""

    frozen: Recommended | None = None
    retrained: Recommended | None = None
    overall: Recommended | None = None
    reason: str = ""  # why there is none


def recommend(rows: "Sequence[Row]") -> Recommendation:
    """Apply the rule of this module to the rows of a table."""
    main = next((row.split for row in rows if row.domain == "real"), None)
    tested = [row for row in rows if (row.domain, row.split) == ("real", main)]
    scored = [row for row in tested if row.validation is not None and isfinite(row.validation) and _takes_part(row)]
    if not scored:
        reason = "no row has a validation mIoU: labels.validation is 0, or an older version wrote the table"
        return Recommendation(reason=reason if tested else "the table has no row for photographs")
    most = {row.method: max(other.labels_train for other in scored if other.method == row.method) for row in scored}
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in scored:
        if row.labels_train == most[row.method]:
            groups[row.method].append(row)

    def of_family(family: Family) -> Recommended | None:
        return _choose({name: group for name, group in groups.items() if family_of(name) == family})

    return Recommendation(frozen=of_family("frozen"), retrained=of_family("retrained"), overall=_choose(groups))


def describe(found: Recommendation) -> list[str]:
    """The recommendation in sentences, one for each family; without one, why."""
    if found.overall is None:
        return [f"none: {found.reason}"]
    families = ((found.frozen, "the expert has to stay as it is"), (found.retrained, "it may be retrained"))
    return [f"{part.sentence}, if {premise}" for part, premise in families if part is not None]


def _takes_part(row: Row) -> bool:
    method = METHODS.get(row.method)
    known = method is not None or row.method == "synthetic only"  # not the rows of a replay
    return known and row.method != ORACLE and not (method is not None and method.overrides.get("labels.shuffle"))


def _choose(groups: "Mapping[str, list[Row]]") -> Recommended | None:
    if not groups:
        return None
    scores = {name: [row.validation or 0.0 for row in group] for name, group in groups.items()}
    low = {name: mean(values) - half_width(values) for name, values in scores.items()}
    leader = max(groups, key=lambda name: low[name])
    tied = [name for name in groups if name == leader or _ties(groups[leader], groups[name])]
    hours = {name: round(mean(row.device_hours for row in group), 2) for name, group in groups.items()}
    chosen = min(tied, key=lambda name: (*cost_of(name), hours[name], -low[name]))
    values, first = scores[chosen], groups[chosen][0]
    return Recommended(
        method=chosen,
        family=family_of(chosen),
        labels_train=first.labels_train,
        seeds=len(values),
        stage=first.stage,
        validation=mean(values),
        low=low[chosen],
        high=mean(values) + half_width(values),
        ties=[name for name in tied if name != chosen],
    )


def _ties(leader: "list[Row]", other: "list[Row]") -> bool:
    """Whether the leader's lead over a row, paired by seed, may be chance. A method with one seed pairs with all."""
    by_seed = {row.seed: row.validation or 0.0 for row in other}
    alone = next(iter(by_seed.values())) if len(by_seed) == 1 else None
    pairs = [(row.validation or 0.0, by_seed.get(row.seed, alone)) for row in leader]
    leads = [own - theirs for own, theirs in pairs if theirs is not None]
    return not leads or mean(leads) <= half_width(leads)


def half_width(values: Sequence[float]) -> float:
    """Half of the 80 % interval of a mean over seeds, in the values' unit; ``ONE_SEED`` for a single value."""
    freedom = len(values) - 1
    if freedom == 0:
        return ONE_SEED
    quantile = T_90[freedom - 1] if freedom <= len(T_90) else NORMAL_90
    return quantile * stdev(values) / sqrt(len(values))


def cost_of(method: str) -> tuple[int, int]:
    """Networks that run on each photograph: generators, segmenters."""
    kind = METHODS[method].kind if method in METHODS else "expert"
    members = RECIPES[kind].members or (kind,)
    return sum(RECIPES[member].section == "translator" for member in members), len(members)
