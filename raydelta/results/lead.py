"""The head of a report: what is recommended, in sentences and tiles, what is broken, and what to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from raydelta.data.simulator.dataset import STAND_IN
from raydelta.recipes import METHODS, RECIPES, short_name
from raydelta.results.differences import lead_of
from raydelta.results.page import Page
from raydelta.results.recommend import ORACLE, Recommendation, Recommended
from raydelta.results.row import Row
from raydelta.results.table import Summary
from raydelta.storage.files import shown

JOINT = "joint training"
ZERO = 0.5
"""IoU in percent below which a class counts as not recognised."""


def add_lead(
    page: Page, found: Recommendation, shown: Sequence[Summary], tested: Sequence[Row], unseen: Sequence[Summary] = ()
) -> None:
    """Recommendation, tiles and cautions.

    Args:
        shown: the lines of the table on the main split.
        tested: its rows.
        unseen: the lines of the table on sequences that training has no image of.
    """
    best = found.overall
    if best is None:
        page.lead.append(f"No row is recommended: {found.reason}.")
    else:
        part = _summary_of(best, shown)
        page.lead.append(_sentence(best, part, _summary_of(best, unseen)))
        if not _translates(best.method) and any(_translates(part.method) for part in shown):
            frozen = found.frozen is not None and _translates(found.frozen.method)
            translation = "If the expert may be retrained, translation" if frozen else "Translation"
            page.lead.append(f"{translation} brings nothing here that the validation labels can tell.")
        for answer, premise in (
            (found.frozen, "If the expert has to stay as it is"),
            (found.retrained, "If it may be retrained"),
        ):
            page.answers.append((premise, answer.sentence if answer is not None else "no row of the table"))
        page.facts += _tiles(best, part)
    page.cautions += _cautions(shown, tested)
    carried = (_carried(each, shown, tested) for each in (found.frozen, found.retrained))
    page.cautions += [text for text in carried if text]


def add_next(page: Page, run: Path, method: str | None) -> None:
    """The commands that usually follow a finished sweep.

    Args:
        method: the recommended row; None: there is none, and the commands take their default.
    """
    row = ["--method", short_name(method)] if method is not None else []
    steps = (
        ("Masks for your photographs", ["predict", shown(run), "photos/", "--out", "masks", *row]),
        ("The model for other programs", ["export", shown(run), "--out", "model", *row]),
        ("The photographs to label next", ["select", shown(run), "20"]),
    )
    page.next = [(what, shlex.join(["raydelta", *command])) for what, command in steps]


def _carried(best: Recommended | None, shown: Sequence[Summary], tested: Sequence[Row]) -> str:
    """A caution where one class carries more than half of a recommended row's lead over joint training."""
    own = _summary_of(best, shown) if best is not None else None
    if own is None or own.method == JOINT:
        return ""
    joint = [part for part in shown if (part.method, part.labels_train) == (JOINT, own.labels_train)]
    lead = lead_of(own.of(tested), joint[0].of(tested)) if joint else None
    if lead is None or lead.whole <= 0 or lead.without_best > lead.whole / 2:
        return ""
    return (
        f"One class carries the lead of {own.method} over {JOINT}: {lead.whole:+.1f} points, without {lead.best} "
        f"{lead.without_best:+.1f}."
    )


def _sentence(best: Recommended, part: Summary | None, unseen: Summary | None) -> str:
    labels = f" with {best.labels_train} labels" if best.labels_train else ""
    text = f"Use {best.method}{labels}: {best.shown} mIoU on the validation labels"
    if part is not None:
        text += f", {part.shown} % on the test photographs"
        text += f", {part.oracle_share:.0f} % of the oracle's" if part.oracle_share is not None else ""
    if unseen is not None:
        text += f"; {unseen.shown} % on those of sequences that training has not seen"
    if best.ties:
        text += f". The validation labels cannot tell it from {_list(best.ties)}"
        text += "; it is the cheapest of them"
    return text + "."


def _tiles(best: Recommended, part: Summary | None) -> list[tuple[str, str]]:
    if part is None:
        return []
    tiles = []
    if part.oracle_share is not None:
        tiles.append(("of the oracle's mIoU", f"{part.oracle_share:.0f} %"))
    if "synthetic only" in part.against:
        gain, deviation = part.against["synthetic only"]
        spread = "" if deviation is None else f" ± {deviation:.1f}"
        tiles.append(("points over synthetic only", f"{gain:+.1f}{spread}"))
    tiles.append(("labels to train, to validate", f"{part.labels_train} + {part.labels_val}"))
    return [*tiles, ("device time", format_time(part.device_hours))]


def _cautions(shown: Sequence[Summary], tested: Sequence[Row]) -> list[str]:
    cautions = []
    zero = [
        name
        for name in tested[0].per_class
        if all((row.per_class[name] or 0.0) < ZERO for row in tested)
        and any(row.per_class[name] is not None for row in tested)
    ]
    if zero:
        oracle = ", the oracle included" if any(row.method == ORACLE for row in tested) else ""
        verb = "is" if len(zero) == 1 else "are"
        cautions.append(f"{_capital(_list(zero))} {verb} 0 in every row{oracle}: train with more pixels or more steps.")
    if len({row.seed for row in tested}) == 1 and len(shown) > 1:
        cautions.append(
            "One seed: differences of a few points may be chance. table.seeds in the search space adds more."
        )
    if tested[0].real == STAND_IN:
        cautions.append(
            "The photographs are the built-in stand-in, made by the simulator: this says nothing of real ones."
        )
    return cautions


def _summary_of(best: Recommended, shown: Sequence[Summary]) -> Summary | None:
    lines = [part for part in shown if (part.method, part.labels_train) == (best.method, best.labels_train)]
    return lines[0] if lines else None


def _translates(method: str) -> bool:
    recipe = RECIPES[METHODS[method].kind] if method in METHODS else None
    if recipe is None:
        return False
    parts = [RECIPES[member] for member in recipe.members] or [recipe]
    return any(
        part.section == "translator" or part.synthetic == "translated" or part.teacher == "agreement" for part in parts
    )


def format_time(hours: float) -> str:
    """Device-hours for people: ``40 s``, ``12 min``, ``3.4 h``."""
    seconds = 3600 * hours
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _list(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
