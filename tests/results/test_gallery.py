import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydelta.config import override
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.data.taxonomy import CAMVID11, IGNORE
from raydelta.errors import UserError
from raydelta.results import gallery
from raydelta.results.gallery import draw_gallery_here
from raydelta.results.pictures import mark_errors
from raydelta.training.job import Job, read_job


def pixels(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def expert_of(translator: Job) -> Job:
    assert translator.expert is not None
    return read_job(translator.expert)


def test_every_picture_has_every_view_and_masks_are_exact(translator: Job) -> None:
    drawn = draw_gallery_here({"guided": translator, "the expert": expert_of(translator)})
    assert drawn.models == ["guided", "the expert"]
    assert (len(drawn.pictures), drawn.of, drawn.size) == (8, 8, (64, 32))
    colours = {*CAMVID11.palette, (0, 0, 0)}
    for picture in drawn.pictures:
        guided, expert = picture.readings
        assert [list(reading.views) for reading in picture.readings] == [
            ["translated", "prediction", "error"],
            ["prediction", "error"],
        ]
        assert guided.views["prediction"] != expert.views["prediction"] or guided.miou == expert.miou
        views = {name: pixels(uri) for name, uri in guided.views.items()}
        views |= {"real": pixels(picture.real), "truth": pixels(picture.truth)}
        assert {view.shape for view in views.values()} == {(32, 64, 3)}
        for mask in ("prediction", "truth"):
            assert {tuple(colour) for colour in views[mask].reshape(-1, 3).tolist()} <= colours
        wrong = (views["prediction"] != views["truth"]).any(-1) & views["truth"].any(-1)
        assert ((views["error"] == [235, 64, 52]).all(-1) == wrong).all()
        assert guided.worst in CAMVID11.classes
        assert guided.worst_iou <= guided.miou


def test_pictures_are_few_enough_for_a_page(translator: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {"guided": translator}
    assert len(draw_gallery_here(jobs, count=3).pictures) == 3
    every = sum(
        len(uri)
        for picture in draw_gallery_here(jobs).pictures
        for uri in [picture.real, picture.truth, *picture.readings[0].views.values()]
    )
    monkeypatch.setattr(gallery, "BUDGET", every / 3)
    drawn = draw_gallery_here(jobs)
    assert 1 <= len(drawn.pictures) < 4
    assert drawn.of == 8


def test_photographs_without_test_labels_have_no_gallery(translator: Job, tmp_path: Path) -> None:
    simulate_dataset("street", tmp_path / "street", counts={"train": 4}, width=64, height=32)
    job = translator.model_copy(update={"config": override(translator.config, {"data.real": str(tmp_path / "street")})})
    with pytest.raises(UserError, match="no labelled test or val split"):
        draw_gallery_here({"guided": job})


def test_errors_are_marked_where_the_truth_is_known() -> None:
    image = np.full((1, 3, 3), 200, dtype=np.uint8)
    marked = mark_errors(image, np.array([[1, 1, 1]], np.uint8), np.array([[1, 2, IGNORE]], np.uint8))
    assert marked.tolist() == [[[100, 100, 100], [235, 64, 52], [0, 0, 0]]]
