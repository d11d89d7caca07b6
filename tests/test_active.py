import json
import sys
from pathlib import Path

import pytest

from benchmarks import active
from raydelta.errors import UserError
from tests.tiny import TINY_ARGUMENTS


def test_a_replay_buys_its_labels_round_by_round(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "active.json"
    options = ["--strategies", "entropy", "--seeds", "3", "--start", "4", "--add", "2", "--rounds", "1"]
    options += ["--window", "1", "--runs", str(tmp_path / "runs"), "--json", str(result), *TINY_ARGUMENTS]
    monkeypatch.setattr(sys, "argv", ["active", *options])
    active.main()
    first, second = json.loads(result.read_text())["rows"]
    assert (first["labels"], second["labels"]) == (4, 6)
    assert second["ids"][:4] == first["ids"]
    assert len(set(second["ids"])) == 6
    for row in (first, second):
        assert (row["strategy"], row["seed"], row["validation_labels"]) == ("entropy", 3, 2)
        assert 0 <= row["miou"] <= 100
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["labels", "entropy"] in printed
    stages = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("translator-*/stage.json")]
    assert sorted(len(stage["labels_train"]) for stage in stages) == [4, 6]
    assert stages[0]["labels_val"] == stages[1]["labels_val"]


def test_the_table_has_the_spread_over_the_seeds() -> None:
    rows = [
        {"strategy": name, "labels": labels, "miou": miou}
        for name, labels, miou in (("a", 16, 30.0), ("a", 16, 32.0), ("a", 8, 20.0), ("b", 8, 21.0), ("b", 16, 40.0))
    ]
    assert active.tabulate(rows, ["a", "b"]) == [["8", "20.0", "21.0"], ["16", "31.0 ± 1.4", "40.0"]]


def test_an_unknown_strategy_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["active", "--strategies", "best"])
    with pytest.raises(UserError, match="'best' does not exist"):
        active.main()
