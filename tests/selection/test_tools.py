import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydelta.data.taxonomy import CAMVID11, IGNORE
from raydelta.errors import UserError
from raydelta.selection.rle import encode_mask
from raydelta.selection.tools import Task, read_masks, write_tasks

SIZES = {"drive-1/0007": (16, 8), "b": (16, 8)}


def draft(seed: int) -> np.ndarray:
    mask = np.random.default_rng(seed).integers(0, len(CAMVID11), (8, 16)).astype(np.uint8)
    mask[:2] = IGNORE
    return mask


MASKS = {"drive-1/0007": draft(0), "b": draft(1)}
TASKS = [Task(name, f"{name}.jpg", (), mask) for name, mask in MASKS.items()]


def assert_same(found: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(MASKS)
    assert all((found[name] == mask).all() for name, mask in MASKS.items())


def studio_export(folder: Path, **changes: Any) -> Path:
    """What Label Studio exports if every draft was accepted as it was."""
    write_tasks(TASKS, CAMVID11, "a model", folder)
    tasks = json.loads((folder / "label-studio.json").read_text())
    for task in tasks:
        task["annotations"] = [{"was_cancelled": False, "result": task.pop("predictions")[0]["result"]}]
    tasks[0] |= changes
    path = folder / "project-1.json"
    path.write_text(json.dumps(tasks))
    return path


def test_drafts_come_back_from_cvat_as_they_went(tmp_path: Path) -> None:
    write_tasks(TASKS, CAMVID11, "a model", tmp_path)
    assert_same(read_masks(tmp_path / "cvat-drafts.zip", SIZES, CAMVID11))
    with zipfile.ZipFile(tmp_path / "cvat-drafts.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split() == ["drive-1/0007", "b"]
        assert archive.read("labelmap.txt").decode().splitlines()[1] == "background:0,0,0::"
    assert_same(read_masks(tmp_path / "unpacked", SIZES, CAMVID11))
    labels = json.loads((tmp_path / "cvat-labels.json").read_text())
    assert [label["name"] for label in labels] == list(CAMVID11.classes)
    assert len({label["color"] for label in labels} - {"#000000"}) == len(CAMVID11), "black is the background"


def test_drafts_come_back_from_label_studio_as_they_went(tmp_path: Path) -> None:
    assert_same(read_masks(studio_export(tmp_path), SIZES, CAMVID11))
    config = (tmp_path / "label-studio.xml").read_text()
    assert all(f'<Label value="{name}"' in config for name in CAMVID11.classes)


def test_label_studio_tasks_are_known_by_their_image_too(tmp_path: Path) -> None:
    path = studio_export(tmp_path, meta={}, data={"image": "/data/local-files/?d=images/drive-1/0007.jpg"})
    assert_same(read_masks(path, SIZES, CAMVID11))


def test_masks_of_class_ids_are_named_like_their_images(tmp_path: Path) -> None:
    for name, mask in MASKS.items():
        (tmp_path / "deep" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "deep" / f"{name}.png")
    assert_same(read_masks(tmp_path, SIZES, CAMVID11))


def save(folder: Path, name: str, pixels: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")


def test_faults_of_masks_are_named(tmp_path: Path) -> None:
    save(tmp_path / "other", "elsewhere", MASKS["b"])
    with pytest.raises(UserError, match=r"elsewhere\.png: no such image was to be labelled"):
        read_masks(tmp_path / "other", SIZES, CAMVID11)
    save(tmp_path / "size", "b", MASKS["b"][:, :8])
    with pytest.raises(UserError, match="the mask of b is 8x8, its image 16x8"):
        read_masks(tmp_path / "size", SIZES, CAMVID11)
    save(tmp_path / "class", "b", np.full((8, 16), 11, np.uint8))
    with pytest.raises(UserError, match=r"b.png has the ids \[11\]; there are 0 to 10 and 255"):
        read_masks(tmp_path / "class", SIZES, CAMVID11)
    save(tmp_path / "colour", "b", np.zeros((8, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"b\.png has mode RGB"):
        read_masks(tmp_path / "colour", SIZES, CAMVID11)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "b.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(UserError, match=r"b\.png cannot be decoded"):
        read_masks(tmp_path / "broken", SIZES, CAMVID11)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no mask in it"):
        read_masks(tmp_path / "empty", SIZES, CAMVID11)
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        read_masks(tmp_path / "nowhere", SIZES, CAMVID11)
    save(tmp_path / "twice", "b", MASKS["b"])
    save(tmp_path / "twice" / "again", "b", MASKS["b"])
    with pytest.raises(UserError, match="b is labelled twice"):
        read_masks(tmp_path / "twice", SIZES, CAMVID11)


def repacked(source: Path, target: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for each in old.namelist():
            new.writestr(each, content if each == name else old.read(each))
    return target


def test_faults_of_cvat_exports_are_named(tmp_path: Path) -> None:
    write_tasks(TASKS, CAMVID11, "a model", tmp_path)
    source = tmp_path / "cvat-drafts.zip"
    strange = repacked(source, tmp_path / "1.zip", "labelmap.txt", b"background:0,0,0::\nspaceship:1,2,3::\n")
    with pytest.raises(UserError, match="the class 'spaceship' is none of camvid11"):
        read_masks(strange, SIZES, CAMVID11)
    few = repacked(source, tmp_path / "2.zip", "labelmap.txt", b"background:0,0,0::\nroad:128,0,0::\n")
    with pytest.raises(UserError, match=r"has colours that labelmap\.txt does not name: #"):
        read_masks(few, SIZES, CAMVID11)
    broken = repacked(source, tmp_path / "3.zip", "labelmap.txt", b"road\n")
    with pytest.raises(UserError, match="'road' is not of the form name:r,g,b::"):
        read_masks(broken, SIZES, CAMVID11)
    (tmp_path / "4.zip").write_bytes(source.read_bytes()[:200])
    with pytest.raises(UserError):
        read_masks(tmp_path / "4.zip", SIZES, CAMVID11)


def brush(label: str, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_mask(mask), "brushlabels": [label]}
    return {"type": "brushlabels", "original_width": 16, "original_height": 8, "value": value} | more


WHOLE = np.ones((8, 16), dtype=bool)


@pytest.mark.parametrize(
    ("annotations", "complaint"),
    [
        ([{"result": [brush("spaceship", WHOLE)]}], "the class 'spaceship' is none of camvid11"),
        ([{"result": [brush("road", WHOLE, type="polygonlabels")]}], "a label of type polygonlabels; use the brush"),
        ([{"result": [brush("road", WHOLE[:4], original_height=4)]}], "is 16x8, its label 16x4"),
        ([{"result": [brush("road", WHOLE, original_height=9)]}], "run-length code has 512 values"),
        ([{"result": []}, {"result": []}], "has 2 annotations; keep one of them"),
        ([{"result": [{"type": "brushlabels"}]}], "no JSON export of Label Studio"),
        ("nonsense", "no JSON export of Label Studio"),
    ],
)
def test_faults_of_label_studio_exports_are_named(tmp_path: Path, annotations: object, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_masks(studio_export(tmp_path, annotations=annotations), SIZES, CAMVID11)


def test_what_is_no_json_or_was_cancelled(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(UserError, match="no JSON export of Label Studio"):
        read_masks(tmp_path / "export.json", SIZES, CAMVID11)
    path = studio_export(tmp_path, annotations=[{"was_cancelled": True, "result": []}])
    assert list(read_masks(path, SIZES, CAMVID11)) == ["b"]


def test_pictures_of_a_palette_count_as_ids(tmp_path: Path) -> None:
    picture = Image.fromarray(MASKS["b"]).convert("P")
    picture.putdata(list(MASKS["b"].ravel()))
    content = io.BytesIO()
    picture.save(content, "PNG")
    (tmp_path / "b.png").write_bytes(content.getvalue())
    assert (read_masks(tmp_path, SIZES, CAMVID11)["b"] == MASKS["b"]).all()
