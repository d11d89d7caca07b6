import re
from pathlib import Path

import pytest

from raydelta.results.lead import add_next, format_time
from raydelta.results.page import Page
from raydelta.results.recommend import recommend
from raydelta.results.report import render
from raydelta.results.row import Row
from raydelta.results.sections import COMPARISON, FAMILIES, add_table, choose_shown
from tests.results.test_recommend import SURE, rows_of
from tests.sweep import make_rows


def page_of(rows: list[Row]) -> Page:
    page = Page(title="made")
    add_table(page, rows)
    return page


def test_the_head_says_which_row_with_its_uncertainty_and_what_ties() -> None:
    ties = rows_of("mean teacher", 36.1, 37.0, 36.4, device_hours=0.5)
    page = page_of([*SURE, *ties])
    (first, second) = page.lead
    assert first.startswith(
        "Use joint training with 14 labels: 36.5 % (80 % interval 36.0 to 37.0) mIoU on the validation"
    )
    assert "cannot tell it from mean teacher; it is the cheapest of them." in first
    assert (
        second == "If the expert may be retrained, translation brings nothing here that the validation labels can tell."
    )
    assert [premise for premise, _ in page.answers] == ["If the expert has to stay as it is", "If it may be retrained"]
    assert [answer.partition(" with")[0] for _, answer in page.answers] == ["guided", "joint training"]


def test_translation_is_worth_nothing_only_where_no_family_has_it_recommended() -> None:
    better = rows_of("blended", 33.5, 34.0, 33.8, labels_train=0)
    assert page_of([*SURE, *better]).lead[1] == "Translation brings nothing here that the validation labels can tell."
    assert len(page_of(rows_of("guided", 32.0, 33.0, 32.5)).lead) == 1


def test_joint_training_is_named_beside_the_charts_only_where_it_is_in_them() -> None:
    assert render(page_of(SURE)).count("Orange: joint training, the baseline") == 1
    assert "Orange: joint" not in render(page_of([row for row in SURE if not row.method.startswith("joint")]))


def test_tiles_are_those_of_the_recommended_row() -> None:
    rows = make_rows(seeds=(0, 1, 2))
    page = page_of(rows)
    best = recommend(rows).overall
    assert best is not None and best.method == "guided"
    assert [name for name, _ in page.facts] == [
        "of the oracle's mIoU",
        "points over synthetic only",
        "labels to train, to validate",
        "device time",
    ]
    assert page.facts[2][1] == "28 + 8" and page.facts[3][1] == "12 min"


def test_classes_that_no_row_recognises_are_named() -> None:
    rows = [
        row.model_copy(update={"per_class": row.per_class | {"pole": 0.0, "bicyclist": 0.2, "fence": None}})
        for row in make_rows(budgets=(7,))
    ]
    said = "Pole and bicyclist are 0 in every row, the oracle included: train with more pixels or more steps."
    assert said in page_of(rows).cautions
    rows[-1].per_class["bicyclist"] = 3.0
    assert (
        "Pole is 0 in every row, the oracle included: train with more pixels or more steps." in page_of(rows).cautions
    )
    without = [row for row in rows if row.method != "oracle"]
    assert any("are 0 in every row: train" in caution for caution in page_of(without).cautions)


def test_the_table_shows_the_families_apart_and_the_highest_first() -> None:
    lines = page_of(make_rows()).tables[0].lines
    groups = list(dict.fromkeys(line.group for line in lines))
    assert groups == [*FAMILIES.values(), COMPARISON]
    for group in groups:
        mious = [float(line.cells[1].split()[0]) for line in lines if line.group == group]
        assert mious == sorted(mious, reverse=True)
    recommended = [(line.group, line.cells[0]) for line in lines if line.mark == "best"]
    assert recommended == [
        (FAMILIES["frozen"], "guided (recommended)"),
        (FAMILIES["retrained"], "joint training (recommended)"),
    ]
    assert [line.cells[0] for line in lines if line.group == COMPARISON] == ["oracle"]


def test_the_gallery_shows_the_recommended_and_the_guided_row() -> None:
    rows = [row.model_copy(update={"stage": f"{row.method}-{row.seed}-{row.labels_train}"}) for row in SURE]
    assert [row.method for row in choose_shown(rows)] == ["joint training", "guided"]
    assert [row.seed for row in choose_shown(rows)] == [0, 0]
    frozen = [row for row in rows if row.method in ("synthetic only", "unguided", "guided")]
    assert [row.method for row in choose_shown(frozen)] == ["guided"]
    assert choose_shown([row.model_copy(update={"stage": None}) for row in rows]) == []


def test_the_next_commands_quote_paths_and_name_the_row() -> None:
    page = Page(title="made")
    add_next(page, Path("/my runs/tune-1"), "mean teacher, translated")
    assert page.next[0][1] == (
        "raydelta predict '/my runs/tune-1' photos/ --out masks --method mean-teacher-translated"
    )
    assert page.next[2][1] == "raydelta select '/my runs/tune-1' 20"


@pytest.mark.parametrize(("hours", "shown"), [(0.01, "36 s"), (0.2, "12 min"), (1.5, "90 min"), (3.44, "3.4 h")])
def test_small_times_are_in_minutes(hours: float, shown: str) -> None:
    assert format_time(hours) == shown


def test_a_lead_that_one_class_carries_is_named() -> None:
    rows = make_rows(budgets=(14,))
    joint = {row.seed: row.per_class for row in rows if row.method == "joint training"}
    for row in rows:
        if row.method == "guided":
            row.per_class.update(joint[row.seed])
            row.per_class["sidewalk"] = (joint[row.seed]["sidewalk"] or 0) + 22.0
    page = page_of(rows)
    assert (
        "One class carries the lead of guided over joint training: +2.0 points, without sidewalk +0.0." in page.cautions
    )
    assert page.class_leads is not None
    line = next(line.cells for line in page.class_leads.lines if line.cells[0].startswith("guided"))
    assert line[1:3] == ["+2.0", "+0.0"]
    assert dict(zip(page.class_leads.columns, line, strict=True))["sidewalk"] == "+22.0"
    even = page_of(make_rows(budgets=(14,)))
    assert not any("One class carries" in caution for caution in even.cautions)


def test_the_head_says_what_holds_on_unseen_sequences() -> None:
    rows = make_rows(budgets=(14,))
    unseen = [row.model_copy(update={"split": "test drive 7", "miou": 12.5}) for row in rows]
    assert "; 12.5 ± 0.0 % on those of sequences that training has not seen" in page_of([*rows, *unseen]).lead[0]
    assert "has not seen" not in page_of(rows).lead[0]


def test_the_reports_differences_have_a_95_percent_interval() -> None:
    table = page_of(make_rows(budgets=(14,))).tables[0]
    place = table.columns.index("against joint training [95 % interval]")
    shown = {line.cells[0]: line.cells[place] for line in table.lines}
    assert re.fullmatch(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", shown["fine-tuned"])
