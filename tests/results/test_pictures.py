from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydelta.data.taxonomy import CAMVID11
from raydelta.errors import UserError
from raydelta.results import pictures

MASK = np.array([[0, 3, 255], [10, 8, 3]], dtype=np.uint8)
SAMPLE = np.full((32, 64, 3), 200, dtype=np.uint8)
LABEL = np.repeat(np.arange(4, dtype=np.uint8), 8)[:, None].repeat(64, axis=1)


def test_colourise() -> None:
    colours = pictures.colourise(MASK, CAMVID11)
    assert (colours.shape, colours.dtype) == ((2, 3, 3), np.uint8)
    assert tuple(colours[0, 0]) == CAMVID11.palette[0]
    assert tuple(colours[1, 0]) == CAMVID11.palette[10]
    assert tuple(colours[0, 2]) == (0, 0, 0)


def test_overlay_mixes_and_spares_void() -> None:
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    mixed = pictures.overlay(image, MASK, CAMVID11, opacity=0.25)
    assert tuple(mixed[0, 2]) == (100, 100, 100)
    assert tuple(mixed[0, 0]) == tuple(round(100 + 0.25 * (value - 100)) for value in CAMVID11.palette[0])
    assert mixed.dtype == np.uint8


def test_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    pictures.contact_sheet([SAMPLE] * 3, [LABEL, None, LABEL], CAMVID11, path, columns=2)
    sheet = np.asarray(Image.open(path))
    gap = pictures.GAP
    assert sheet.shape[1] == 2 * (3 * 64 + gap) + gap
    assert sheet.shape[0] > 2 * (32 + gap)
    assert np.array_equal(sheet[gap : gap + 32, gap : gap + 64], SAMPLE)
    assert np.array_equal(sheet[gap : gap + 32, gap + 64 : gap + 128], pictures.colourise(LABEL, CAMVID11))
    legend = {tuple(colour) for colour in sheet[2 * (32 + gap) + gap :].reshape(-1, 3)}
    assert set(CAMVID11.palette) <= legend
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_strip_puts_images_under_their_titles(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    rows = [[SAMPLE, SAMPLE // 2], [SAMPLE // 3, SAMPLE // 4]]
    pictures.strip(rows, ["real", "a title much too long for its picture"], path)
    sheet = np.asarray(Image.open(path))
    gap, line = pictures.GAP, pictures.LINE
    assert sheet.shape == (gap + line + 2 * (32 + gap), gap + 2 * (64 + gap), 3)
    assert np.array_equal(sheet[-gap - 32 : -gap, -gap - 64 : -gap], SAMPLE // 4)
    assert (sheet[:, -gap:] == 255).all()


def test_class_bars(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    shares = [0.5, *[0.05] * 10]
    pictures.class_bars({"train": shares, "test": [0.0] * 11}, CAMVID11, path)
    chart = np.asarray(Image.open(path))
    sky, building = ((chart == colour).all(axis=2).sum() for colour in CAMVID11.palette[:2])
    assert 8 < sky / building < 12


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        pictures.strip([[SAMPLE]], ["real"], tmp_path / "taken.png")
    assert [file.name for file in tmp_path.iterdir()] == ["taken.png"]


def test_heat_goes_from_the_dim_image_through_red_to_yellow() -> None:
    values = np.zeros((32, 64), dtype=np.float32)
    values[0, :2] = 0.5, 1.0
    hot = pictures.heat(SAMPLE, values)
    assert [tuple(hot[0, column]) for column in range(3)] == [(255, 0, 0), (255, 255, 0), (100, 100, 100)]


def test_outline_stays_inside_its_box() -> None:
    drawn = pictures.outline(SAMPLE, (8, 4, 16, 12))
    changed = np.argwhere((drawn != SAMPLE).any(-1))
    assert (changed.min(0).tolist(), changed.max(0).tolist()) == ([4, 8], [11, 15])
    assert tuple(drawn[8, 12]) == (200, 200, 200)
    assert (SAMPLE == 200).all(), "the image itself is left alone"


def test_a_strip_has_room_for_its_captions(tmp_path: Path) -> None:
    for name, captions in (("without", None), ("with", ["first", "second"])):
        pictures.strip([[SAMPLE, SAMPLE]] * 2, ["a", "b"], tmp_path / f"{name}.png", captions)
    plain, captioned = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("without", "with"))
    assert captioned.shape[0] == plain.shape[0] + 2 * pictures.LINE
    gap, line = pictures.GAP, pictures.LINE
    below = captioned[gap + line + 32 : gap + line + 32 + line]
    assert (below < 128).any(), "text"
    second = gap + line + 32 + gap + line
    assert np.array_equal(captioned[second : second + 32, gap : gap + 64], SAMPLE)
