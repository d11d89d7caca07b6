import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from raydelta.errors import UserError
from raydelta.results.recommend import ONE_SEED, Recommendation, cost_of, describe, half_width, recommend
from raydelta.results.row import Row
from raydelta.results.table import recommended_row, write_table
from tests.results.test_table import row


def rows_of(method: str, *validation: float | None, **fields: Any) -> list[Row]:
    """A row for each seed; its test mIoU says the opposite of its validation mIoU."""
    return [row(method, seed, 90 - (value or 0), validation=value, **fields) for seed, value in enumerate(validation)]


def chosen(rows: list[Row]) -> dict[str, str | None]:
    found = recommend(rows)
    families = {"frozen": found.frozen, "retrained": found.retrained, "overall": found.overall}
    return {name: part and part.method for name, part in families.items()}


SURE = [
    *rows_of("synthetic only", 20.0, labels_train=0, labels_val=0),
    *rows_of("unguided", 24.0, 25.0, 24.5, labels_train=0),
    *rows_of("guided", 32.0, 33.0, 32.5),
    *rows_of("joint training", 36.0, 37.0, 36.5),
    *rows_of("fine-tuned", 30.0, 31.0, 30.5),
    *rows_of("oracle", 50.0, 51.0, 52.0, labels_train=367),
    *rows_of("joint training, shuffled labels", 60.0, 60.1, 60.2),
]


def test_each_family_has_its_row_and_validation_labels_decide() -> None:
    assert chosen(SURE) == {"frozen": "guided", "retrained": "joint training", "overall": "joint training"}
    found = recommend(SURE).frozen
    assert found is not None
    assert (found.seeds, found.labels_train, found.validation, found.ties) == (3, 14, 32.5, [])
    width = 1.886 * stdev([32.0, 33.0, 32.5]) / 3**0.5
    assert (found.low, found.high) == (pytest.approx(32.5 - width), pytest.approx(32.5 + width))


def test_a_high_mean_with_a_wide_spread_does_not_lead() -> None:
    rows = [*rows_of("fine-tuned", 25.0, 35.0, 45.0), *rows_of("joint training", 33.0, 33.1, 33.2)]
    found = recommend(rows).overall
    assert found is not None
    assert (found.method, found.ties) == ("joint training", ["fine-tuned"])


def test_a_tie_goes_to_the_cheaper_at_inference() -> None:
    ensemble = rows_of("ensemble, untranslated", 33.3, 34.2, 33.7)
    rows = [*ensemble, *rows_of("joint training", 33.0, 34.3, 33.5)]
    found = recommend(rows).overall
    assert found is not None
    assert (found.method, found.ties) == ("joint training", ["ensemble, untranslated"])
    better = rows_of("ensemble, untranslated", 36.0, 37.2, 36.6)
    assert chosen([*better, *rows[3:]])["overall"] == "ensemble, untranslated"


def test_a_tie_at_the_same_cost_of_inference_goes_to_the_cheaper_to_train() -> None:
    rows = [*rows_of("mean teacher", 33.3, 34.2, 33.7, device_hours=0.5), *rows_of("joint training", 33.0, 34.3, 33.5)]
    assert chosen(rows)["overall"] == "joint training"


def test_a_lead_is_paired_by_seed() -> None:
    """Seeds differ by ten points, the methods by one on every seed."""
    rows = [*rows_of("student", 31.0, 41.1, 21.0), *rows_of("joint training", 30.0, 40.0, 20.0)]
    found = recommend(rows).overall
    assert found is not None
    assert (found.method, found.ties) == ("student", [])


@pytest.mark.parametrize(("lead", "ties"), [(0.1, ["guided"]), (ONE_SEED + 0.1, [])])
def test_one_seed_tells_nothing_by_a_tenth_of_a_point(lead: float, ties: list[str]) -> None:
    rows = [*rows_of("guided", 30.0), *rows_of("joint training", 30.0 + lead)]
    found = recommend(rows).overall
    assert found is not None
    assert (found.method, found.ties) == ("joint training", ties)
    assert found.high - found.low == pytest.approx(2 * ONE_SEED)


def test_the_one_expert_is_compared_with_every_seed() -> None:
    rows = [*rows_of("synthetic only", 30.0), *rows_of("guided", 29.0, 35.0, 26.2)]
    assert chosen(rows)["frozen"] == "synthetic only"


def test_of_several_label_budgets_the_largest_takes_part() -> None:
    rows = [*rows_of("fine-tuned", 39.0, labels_train=14), *rows_of("fine-tuned", 30.0, labels_train=74)]
    rows += rows_of("joint training", 36.0, labels_train=74)
    found = recommend(rows).overall
    assert found is not None
    assert (found.method, found.labels_train) == ("joint training", 74)


def test_without_validation_labels_nothing_is_recommended_and_the_table_says_why(tmp_path: Path) -> None:
    rows = rows_of("guided", None)
    assert chosen(rows) == dict.fromkeys(("frozen", "retrained", "overall"))
    assert recommend(rows).reason.startswith("no row has a validation mIoU: labels.validation is 0")
    assert recommend(rows_of("guided, entropy", 30.0)).overall is None, "a replay compares strategies"
    assert "no row for photographs" in recommend([]).reason
    write_table(tmp_path, rows)
    assert recommended_row(tmp_path) is None


def test_the_table_names_the_row(tmp_path: Path) -> None:
    assert recommended_row(tmp_path) is None
    write_table(tmp_path, SURE)
    written = json.loads((tmp_path / "table.json").read_text())["recommended"]
    assert Recommendation(**written) == recommend(SURE)
    assert recommended_row(tmp_path) == "joint training"
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(UserError, match=r"table\.json: damaged; .* or name a --method"):
        recommended_row(tmp_path)


def test_the_expert_alone_is_the_cheapest_and_a_generator_costs_more_than_a_segmenter() -> None:
    order = ["synthetic only", "ensemble, untranslated", "guided", "ensemble"]
    assert sorted(order, key=cost_of) == order
    assert cost_of("joint training") == cost_of("synthetic only") == (0, 1)


def test_the_interval_is_students() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(1.886 / 3**0.5)
    many = [float(value) for value in range(20)]
    assert half_width(many) == pytest.approx(1.282 * stdev(many) / 20**0.5)
    assert mean(many) - half_width(many) < mean(many)


def test_the_recommendation_in_sentences() -> None:
    frozen, retrained = describe(recommend([*SURE, *rows_of("mean teacher", 36.0, 37.0, 36.5)]))
    assert frozen.startswith("guided with 14 labels: 32.5 % (80 % interval ")
    assert frozen.endswith(" on the validation labels, if the expert has to stay as it is")
    assert retrained.endswith("; ties with mean teacher, if it may be retrained")
    assert describe(recommend([]))[0].startswith("none: ")
