from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.picture import OUT, draw
from raydelta.results.row import Row
from raydelta.results.table import write_table


def sweep(trained: dict[str, Any]) -> Path:
    """A sweep's directory beside the trainings: its table is all that the picture asks for."""
    rows = [
        row(method, labels, miou, job.directory.name)
        for method, job in (("guided", trained["translator"]), ("joint training", trained["joint training"]))
        for labels, miou in ((4, 20.0), (8, 25.0))
    ]
    folder = trained["expert"].directory.parent / "tune-made-0123456789"
    write_table(folder, [*rows, row("oracle", 90, 30.0, None)])
    return folder


def row(method: str, labels: int, miou: float, stage: str | None) -> Row:
    return Row(
        method=method,
        labels_train=labels,
        labels_val=0,
        seed=0,
        real="photographs",
        split="test",
        start="expert",
        pretraining=None,
        device_hours=0.1,
        miou=miou,
        per_class={"road": miou},
        images=3,
        stage=stage,
    )


@pytest.mark.parametrize(("method", "columns"), [("guided", 4), ("joint training", 3)])
def test_the_picture_has_a_row_for_each_photograph_and_a_curve(
    trained: dict[str, Any], tmp_path: Path, method: str, columns: int
) -> None:
    """A model that does not translate has no column for it."""
    out = tmp_path / "new" / "picture.png"
    draw(sweep(trained), method, 2, out)
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] > columns * 224 + 400
    photographs, curve = np.split(picture, [8 + columns * 232], axis=1)
    drawn = (photographs != 255).any(-1).mean(1) > 0.5
    assert drawn.sum() == pytest.approx(2 * 112, abs=4), "two photographs of 224×112"
    assert len(np.unique(curve.reshape(-1, 3), axis=0)) > 10, "lines in colours"


def test_photographs_of_others_do_not_get_into_the_readme(trained: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="name another file with --out"):
        draw(sweep(trained), "guided", 1, OUT)


def test_a_method_that_was_not_trained_is_named_with_those_that_were(trained: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no training of 'student'; there are guided, joint training, oracle"):
        draw(sweep(trained), "student", 1, tmp_path / "picture.png")
    with pytest.raises(SystemExit, match="no training of 'oracle'"):
        draw(sweep(trained), "oracle", 1, tmp_path / "picture.png")
