import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import END, FORMATS, format_authors, format_frozen, format_markdown
from raydelta.results.row import Row
from raydelta.results.table import write_table

ROOT = Path(__file__).parents[1]


def row(method: str, labels: int, seed: int, miou: float, split: str = "test") -> Row:
    return Row(
        method=method,
        labels_train=labels,
        labels_val=0,
        seed=seed,
        real="photographs",
        split=split,
        start="expert",
        pretraining=None,
        device_hours=0.25,
        miou=miou,
        per_class={"road": miou},
        images=3,
    )


def table(folder: Path) -> Path:
    rows = [row("synthetic only", 0, 0, 20.0)]
    for seed, shift in ((0, 0.0), (1, 2.0)):
        for labels in (4, 8):
            rows += [row("joint training", labels, seed, 30.0 + shift), row("student", labels, seed, 31.0 + 2 * shift)]
        rows += [row("student", 8, seed, 40.0, "test drive 7"), row("oracle", 90, seed, 50.0)]
    write_table(folder, rows)
    return folder / "table.json"


def test_a_table_becomes_markdown(tmp_path: Path) -> None:
    lines = format_markdown(table(tmp_path)).splitlines()
    assert lines[0].startswith("| method | none, or as named | 4 labels | against joint | 8 labels | against joint |")
    assert lines[2] == "| synthetic only | 20.0 |  |  |  |  |  | 0.25 |"
    lead = "+2.0 [-10.7, +14.7]"
    assert lines[4] == f"| student |  | 33.0 ± 2.8 | {lead} | 33.0 ± 2.8 | {lead} | 40.0 ± 0.0 | 0.25 |"
    assert lines[5] == "| oracle (90 labels) | 50.0 ± 0.0 |  |  |  |  |  | 0.25 |"


def test_a_table_is_put_between_the_marks_of_a_file(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    end = END.format("results")
    page.write_text(f"before\n<!-- results: nothing -->\nold\n{end}\nafter\n")
    command = [sys.executable, "-m", "benchmarks.results", str(table(tmp_path)), "--write", str(page)]
    for _ in range(2):  # the second time changes nothing
        subprocess.run(command, check=True, cwd=ROOT)
        text = page.read_text()
        assert text.startswith("before\n<!-- results: ") and text.endswith(f"{end}\nafter\n")
        assert text.count("| student |") == 1 and "old" not in text


@pytest.mark.parametrize("name", FORMATS)
def test_the_docs_say_what_the_committed_table_says(name: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    found = re.search(rf"<!-- {name}: (\S+) -->\n(.*?)\n" + END.format(name), page, re.DOTALL)
    assert found is not None
    assert found[2] == FORMATS[name](ROOT / found[1])


def test_the_authors_figures_stand_beside_ours_with_their_ratios(tmp_path: Path) -> None:
    rows = [row("synthetic only", 0, 0, 15.0), row("unguided", 0, 0, 21.0), row("unguided", 0, 1, 21.0)]
    rows += [row(method, 14, seed, 30.0 + seed) for method in ("guided", "taught") for seed in (0, 1)]
    rows += [row("synthetic only", 0, 0, 10.0, "test drive 7"), row("guided", 14, 0, 25.0, "test drive 7")]
    rows += [row("guided", 14, 0, 99.0, "test").model_copy(update={"domain": "synthetic"})]
    write_table(tmp_path, rows)
    lines = format_authors(tmp_path / "table.json").splitlines()
    assert lines[0] == "|  | the authors, Cityscapes | ours, 14 labels | … unseen drive |"
    assert lines[2] == "| the expert on photographs as they are | 12.8 (1.0 ×) | 15.0 (1.0 ×) | 10.0 (1.0 ×) |"
    assert lines[3] == "| through an unguided CycleGAN | 20.5 (1.6 ×) | 21.0 ± 0.0 (1.4 ×) |  |"
    assert lines[4] == "| through the guided one | 36.3 (2.8 ×) | 30.5 ± 0.7 (2.0 ×) | 25.0 (2.5 ×) |"
    assert lines[5] == "| through the taught one |  | 30.5 ± 0.7 (2.0 ×) |  |"


def test_a_lead_over_the_unguided_translator_is_shown_without_the_class_that_carries_it(tmp_path: Path) -> None:
    rows = []
    for seed in (0, 1):
        rows += [row("unguided", 0, seed, 20.0), row("guided", 14, seed, 24.0 + 2 * seed)]
    ious = {"unguided": {"road": 30.0, "car": 10.0}, "guided": {"road": 31.0, "car": 19.0}}
    write_table(tmp_path, [each.model_copy(update={"per_class": ious[each.method]}) for each in rows])
    lines = format_frozen(tmp_path / "table.json").splitlines()
    assert lines[2] == "| unguided | 20.0 ± 0.0 |  |  |  |  |  | 0.25 |"
    lead = "+5.0 [-7.7, +17.7]"
    assert lines[3] == f"| guided (14 labels) | 25.0 ± 1.4 | {lead} | +1.0 (car) |  |  |  | 0.25 |"
