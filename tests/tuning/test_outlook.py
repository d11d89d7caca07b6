from pathlib import Path
from typing import Any

import pytest

from raydelta.errors import UserError
from raydelta.tuning.outlook import look_ahead
from raydelta.tuning.tune import tune
from tests.tiny import TINY

SPACE = """
search: {guidance.weight: {grid: [0.3, 0.7]}}
scheduler: none
trials: 1
table: {methods: [guided, joint training]}
"""
OVERRIDES = [f"{key}={value}" for key, value in TINY.items()]


def files(runs: Path) -> list[Path]:
    """All but the data sets, which the real run takes."""
    return sorted(path for path in runs.rglob("*") if path.is_file() and path.relative_to(runs).parts[0] != "data")


def test_what_would_be_trained_is_told_before_and_after(runs: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    asked: dict[str, Any] = {"space": str(space), "overrides": OVERRIDES, "preset": "laptop", "runs": runs}
    before = look_ahead(**asked)
    assert files(runs) == []
    assert [(part.name, part.trainings, part.finished, part.steps) for part in before.parts] == [
        ("expert", 1, 0, 6),
        ("search (guided)", 2, 0, 12),
        ("guided", 1, None, 6),
        ("joint training", 1, None, 2),
    ]
    assert before.seconds > 0 and all(part.seconds > 0 for part in before.parts)
    lines = before.lines()
    assert lines[4].split()[:4] == ["joint", "training", "1", "2"]
    assert lines[-1].startswith("expected     0:0")

    done = tune(**asked)
    trained = files(runs)
    after = look_ahead(**asked)
    assert files(runs) == trained
    assert after.directory == str(done.directory)
    assert [(part.trainings, part.finished, part.steps) for part in after.parts] == [
        (1, 1, 0),
        (2, 2, 0),
        (1, 1, 0),
        (1, 1, 0),
    ]
    assert after.seconds == 0


def test_what_tune_would_refuse_is_refused(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"40 labels|labels.budget"):
        look_ahead("table", [*OVERRIDES, "table.budgets=[40]"], preset="laptop", runs=tmp_path)
    assert files(tmp_path) == []
