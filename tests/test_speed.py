import json
from pathlib import Path

import pytest

from benchmarks.speed import BEGIN, COMMITTED, END, compare, format_markdown, read_all

ROOT = Path(__file__).parents[1]


def test_the_docs_show_the_committed_figures() -> None:
    text = (ROOT / "docs" / "speed.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0].strip() == format_markdown(read_all(ROOT / COMMITTED))


@pytest.mark.parametrize(
    ("now", "losses"),
    [
        (4.0, []),
        (3.5, []),
        (3.3, ["step: compiled was 4.00 and is 3.30"]),
        (None, []),  # a machine without bf16 units
    ],
)
def test_a_ratio_that_lost_more_than_15_percent_is_named(now: float | None, losses: list[str]) -> None:
    assert compare({"step": {"ratios": {"compiled": 4.0}}}, {"step": {"ratios": {"compiled": now}}}) == losses


def test_a_ratio_that_vanished_is_named_and_a_benchmark_that_was_not_run_is_not() -> None:
    committed = {"step": {"ratios": {"compiled": 4.0}}, "sweep": {"ratios": {"naive": 4.0}}}
    assert compare(committed, {"step": {"ratios": {}}}) == ["step: compiled is not measured any more"]


def test_results_are_read_by_the_name_of_their_benchmark(tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text(json.dumps({"ratios": {}}))
    assert read_all(tmp_path) == {"step": {"ratios": {}}}
