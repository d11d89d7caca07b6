import pytest

from raydelta.results.differences import format_difference, half_width_95, lead_of
from tests.sweep import make_rows


def test_the_interval_is_students() -> None:
    assert half_width_95(1.0, 2) == pytest.approx(8.985, abs=1e-3)
    assert half_width_95(1.4, 3) == pytest.approx(4.303 * 1.4 / 3**0.5)
    assert half_width_95(2.0, 10) == pytest.approx(2.262 * 2 / 10**0.5)
    assert half_width_95(2.0, 11) == pytest.approx(1.96 * 2 / 11**0.5)
    assert half_width_95(0.0, 5) == 0


def test_a_difference_is_shown_with_its_interval() -> None:
    assert format_difference(2.1, 1.4, 3) == "+2.1 [-1.4, +5.6]"
    assert format_difference(-0.4, None, 1) == "-0.4"


def test_a_lead_is_told_class_by_class_and_without_its_best_class() -> None:
    rows = make_rows(budgets=(14,), seeds=(0, 1))
    ours, theirs = ([row for row in rows if row.method == name] for name in ("guided", "joint training"))
    for row, other, gain in zip(ours, theirs, (10.0, 14.0), strict=True):
        row.per_class.clear()
        row.per_class.update({"road": 50.0, "car": 20.0 + gain, "pole": None, "sky": 8.0})
        other.per_class.clear()
        other.per_class.update({"road": 50.0, "car": 20.0, "pole": 3.0, "sky": 10.0})
    lead = lead_of(ours, theirs)
    assert lead is not None
    assert lead.classes == {"road": 0.0, "car": 12.0, "sky": -2.0}
    assert (lead.whole, lead.best, lead.without_best) == (pytest.approx(10 / 3), "car", -1.0)


def test_rows_without_a_common_seed_have_no_lead() -> None:
    rows = make_rows(budgets=(14,), seeds=(0, 1))
    first, second = ([row for row in rows if row.method == "guided" and row.seed == seed] for seed in (0, 1))
    assert lead_of(first, second) is None
