from pathlib import Path
from typing import Any

import raydelta
from raydelta.results.recommend import Recommended
from raydelta.tuning.best import write_best


def recommended(stage: str) -> Recommended:
    figures: dict[str, Any] = {"validation": 30.0, "low": 28.0, "high": 32.0, "ties": []}
    return Recommended(method="guided", family="frozen", labels_train=4, seeds=1, stage=stage, **figures)


def test_best_is_the_recommended_model_and_needs_nothing_beside_it(trained: dict[str, Any], tmp_path: Path) -> None:
    jobs = [trained["translator"], trained["joint training"]]
    for job in jobs:  # the second replaces the first
        best = write_best(tmp_path / "tune-1", jobs, recommended(job.directory.name))
        assert best == tmp_path / "tune-1" / "best"
        assert sorted(path.name for path in best.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
        moved = best.rename(tmp_path / job.directory.name)
        assert raydelta.load(moved).network.config.run == job.directory.name
        card = (moved / "README.md").read_text()
        assert "Labelled photographs: 4 to train" in card
        assert "onnx" not in card.replace("- onnx", "") and "Check of the export" not in card
        moved.rename(best)
    assert sorted(path.name for path in (tmp_path / "tune-1").iterdir()) == ["best"]


def test_without_a_recommendation_there_is_no_best(trained: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    assert write_best(tmp_path, [trained["translator"]], None) is None
    assert list(tmp_path.iterdir()) == []
