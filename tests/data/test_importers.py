import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydelta.data import checking, shards
from raydelta.data.formats import detect
from raydelta.data.importers import ImportOptions, import_dataset
from raydelta.data.shards import BadItem
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.data.simulator.scene import simulate
from raydelta.data.taxonomy import CAMVID11
from raydelta.errors import UserError

CAMVID = Path(__file__).parents[2] / "../shared/data/original/camvid"
WIDTH, HEIGHT = 24, 16

pytestmark = pytest.mark.usefixtures("ray_session")


def paint(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(*ids: int) -> Image.Image:
    """Stripes of the ids."""
    return Image.fromarray(np.resize(np.array(ids, dtype=np.uint8), (HEIGHT, WIDTH)))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/SPLIT with labels/SPLIT, JPEG and PNG, flat and nested."""
    source = tmp_path / "source"
    for number, name in enumerate(["train/0001TP_008550.jpg", "train/0001TP_008580.png", "train/town/000001.png"]):
        save(paint(number), source / "images" / name)
        save(mask(*range(11), 255), source / "labels" / Path(name).with_suffix(".png"))
    save(paint(9), source / "images/test/Seq05VD_f01620.jpg")
    save(mask(0, 10), source / "labels/test/Seq05VD_f01620.png")
    return source


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    """CamVid's published layout."""
    source = tmp_path / "CamVid"
    for split, names in {
        "train": ["0001TP_006690", "0016E5_01800"],
        "val": ["0016E5_08109"],
        "test": ["Seq05VD_f01620"],
    }.items():
        for number, name in enumerate(names):
            save(paint(number), source / split / f"{name}.png")
            save(mask(*range(12)), source / f"{split}annot" / f"{name}.png")
        (source / f"{split}.txt").write_text("/home/somebody/SegNet/CamVid/train/0001TP_006690.png\n")
    return source


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def test_folder(folder: Path, tmp_path: Path) -> None:
    before = files_of(folder)
    manifest = import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    assert files_of(folder) == before
    assert (manifest.name, manifest.domain, list(manifest.splits)) == ("set", "real", ["train", "test"])
    assert shards.list_ids(tmp_path / "set", "train") == [
        ("0001TP_008550", "0001TP", True),
        ("0001TP_008580", "0001TP", True),
        ("town/000001", "town", True),
    ]
    rows = shards.read_rows(tmp_path / "set", "train").to_pylist()
    assert rows[0]["image"] == (folder / "images/train/0001TP_008550.jpg").read_bytes()
    assert rows[1]["image"] == (folder / "images/train/0001TP_008580.png").read_bytes()
    assert np.array_equal(Image.open(io.BytesIO(rows[2]["label"])), mask(*range(11), 255))
    assert checking.check(tmp_path / "set").problems == []


def test_flat_folder_without_labels(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for number in range(3):
        save(paint(number), source / f"images/frame{number:04d}.jpg")
    (source / "images/._frame0000.jpg").write_bytes(b"what macOS leaves")
    (source / "images/notes.txt").write_text("not a picture")
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))
    assert (manifest.splits["train"].rows, manifest.splits["train"].labelled) == (3, 0)
    assert {sample.sequence for sample in shards.list_ids(tmp_path / "set", "train")} == {"frame"}


@pytest.mark.parametrize("splits", [("",), ("drive1/", "drive2/deep/"), ("train/", "test/")])
def test_a_plain_folder_of_photographs(tmp_path: Path, splits: tuple[str, ...]) -> None:
    source = tmp_path / "photos"
    for number, split in enumerate(splits * 2):
        save(paint(number), source / f"{split}frame{number:04d}.jpg")
    (source / "notes.txt").write_text("not a picture")
    assert detect(source) == "folder"
    manifest = import_dataset(source, tmp_path / "set")
    names = ["train", "test"] if "train/" in splits else ["train"]
    assert list(manifest.splits) == names
    assert sum(split.rows for split in manifest.splits.values()) == 2 * len(splits)
    assert all(split.labelled == 0 for split in manifest.splits.values())


@pytest.mark.parametrize("folder", ["masks", "Labels", "gtFine", "SegmentationClass"])
def test_a_folder_that_may_hold_labels_is_no_plain_folder(tmp_path: Path, folder: str) -> None:
    save(paint(0), tmp_path / "photos/imgs/a.jpg")
    save(mask(0), tmp_path / f"photos/{folder}/a.png")
    assert detect(tmp_path / "photos") is None
    with pytest.raises(UserError, match="no layout that an importer knows; name it with --kind or --images"):
        import_dataset(tmp_path / "photos", tmp_path / "set")


def test_a_picture_in_place_of_a_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a file, not a folder: give the folder that it is in"):
        import_dataset(folder / IMAGE, tmp_path / "set")


def test_ids_of_another_taxonomy_are_refused_and_mapped_where_it_is_said(tmp_path: Path) -> None:
    """CamVid's ids read as Cityscapes': its sky would be road."""
    source = tmp_path / "source"
    for number in range(8):
        save(paint(number), source / f"images/train/clip_{number:04d}.jpg")
        street = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        street[HEIGHT // 2 :] = 3  # sky above, road below
        save(Image.fromarray(street), source / f"labels/train/clip_{number:04d}.png")
    with pytest.raises(
        UserError,
        match=r"ids of cityscapes19, road covers 0\.0%.*ids of camvid11.*--ids camvid11 maps them to cityscapes19",
    ):
        import_dataset(source, tmp_path / "set", ImportOptions(taxonomy="cityscapes19"))
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(taxonomy="cityscapes19", ids="camvid11"))
    pixels = dict(zip(manifest.taxonomy.classes, manifest.splits["train"].pixels, strict=True))
    assert {name for name, count in pixels.items() if count} == {"sky", "road"}


@pytest.mark.parametrize("suffix", ["tif", "bmp"])
def test_pairs_of_other_formats(tmp_path: Path, suffix: str) -> None:
    save(paint(0), tmp_path / f"source/images/a.{suffix}")
    save(mask(0, 3), tmp_path / f"source/labels/a.{suffix}")
    import_dataset(tmp_path / "source", tmp_path / "set")
    (row,) = shards.read_rows(tmp_path / "set", "train").to_pylist()
    assert np.array_equal(Image.open(io.BytesIO(row["label"])), mask(0, 3))
    assert checking.check(tmp_path / "set").problems == []


def test_some_labels_only_if_said_so(folder: Path, tmp_path: Path) -> None:
    (folder / "labels/train/0001TP_008550.png").unlink()
    with pytest.raises(BadItem, match=r"0001TP_008550\.jpg: the image has no label of the same name \(labels"):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    manifest = import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder", allow_unlabelled=True))
    assert (manifest.splits["train"].rows, manifest.splits["train"].labelled) == (3, 2)


def test_crop_size_limit_and_splits(folder: Path, tmp_path: Path) -> None:
    manifest = import_dataset(
        folder,
        tmp_path / "set",
        ImportOptions(kind="folder", crop=(4, 2, 20, 10), size=(8, 4), limit=1, splits=["train"]),
    )
    assert list(manifest.splits) == ["train"]
    (row,) = shards.read_rows(tmp_path / "set", "train").to_pylist()
    assert (row["width"], row["height"]) == (8, 4)
    label = np.asarray(Image.open(io.BytesIO(row["label"])))
    cropped = np.asarray(mask(*range(11), 255))[2:10, 4:20]
    assert np.array_equal(label, cropped[1::2, 1::2])
    image = np.asarray(Image.open(io.BytesIO(row["image"])), dtype=float)
    source = np.asarray(Image.open(folder / "images/train/0001TP_008550.jpg"), dtype=float)[2:10, 4:20]
    assert np.abs(image - source.reshape(4, 2, 8, 2, 3).mean((1, 3))).mean() < 30
    assert checking.check(tmp_path / "set").problems == []


def test_own_taxonomy(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("[left, right]")
    with pytest.raises(BadItem, match=r"the ids \[2, 3.*not in the table \(0-1, 255\)"):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder", taxonomy=str(tmp_path / "two.yaml")))


def test_indices_of_a_palette_count(folder: Path, tmp_path: Path) -> None:
    palette = mask(3, 5)
    palette.putpalette([value for colour in CAMVID11.palette for value in colour])
    assert palette.mode == "P"
    save(palette, folder / "labels/test/Seq05VD_f01620.png")
    manifest = import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder", splits=["test"]))
    assert [index for index, count in enumerate(manifest.splits["test"].pixels) if count] == [3, 5]
    palette = mask(3, 77)
    palette.putpalette([value for value in range(256) for _ in range(3)])
    save(palette, folder / "labels/test/Seq05VD_f01620.png")
    with pytest.raises(BadItem, match=r"the palette indices \[77\]"):
        import_dataset(folder, tmp_path / "other", ImportOptions(kind="folder", splits=["test"]))


def test_rotated_photographs_are_stored_upright(tmp_path: Path) -> None:
    path = tmp_path / "source/images/phone_1.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(parents=True)
    paint(0).save(path, exif=exif)
    import_dataset(tmp_path / "source", tmp_path / "set", ImportOptions(kind="folder"))
    (row,) = shards.read_rows(tmp_path / "set", "train").to_pylist()
    assert (row["width"], row["height"]) == (HEIGHT, WIDTH)
    assert Image.open(io.BytesIO(row["image"])).getexif().get(0x0112, 1) == 1


# Each breaks one file of the folder above; the file's name and the rule must be in the message.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 3, dtype=np.uint16)).save(path)


def link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside.png"
    path.rename(outside)
    path.symlink_to(outside)


IMAGE, LABEL = "images/train/0001TP_008550.jpg", "labels/train/0001TP_008550.png"
BREAKAGES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("truncated JPEG", IMAGE, truncate, "cannot be decoded"),
    ("truncated PNG", "images/train/0001TP_008580.png", truncate, "cannot be decoded"),
    ("truncated label", LABEL, truncate, "cannot be decoded"),
    ("empty image", IMAGE, lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    ("empty label", LABEL, lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    ("no image", IMAGE, lambda path: path.write_bytes(b"Not found"), "cannot identify image file"),
    ("16-bit label", LABEL, sixteen_bits, "a 16-bit picture; expected 8-bit single-channel class ids"),
    ("16-bit image", "images/train/0001TP_008580.png", sixteen_bits, "expected 8 bits per channel"),
    ("colour label", LABEL, lambda path: paint(1).save(path), "a colour picture; expected 8-bit single-channel"),
    ("1-bit label", LABEL, lambda path: mask(0, 1).convert("1").save(path), "a 1-bit picture"),
    ("JPEG label", LABEL, lambda path: mask(0, 1).save(path, "JPEG"), "JPEG, which is lossy"),
    ("other size", LABEL, lambda path: Image.new("L", (12, 8)).save(path), "12×8 pixels, its image 24×16"),
    ("id 12 of 11", LABEL, lambda path: mask(0, 12).save(path), "ids [12], which are not in the table (0-10, 255)"),
    ("no label", LABEL, Path.unlink, "has no label of the same name"),
    ("no image for a label", IMAGE, Path.unlink, "has no image of the same name"),
    ("twice", IMAGE, lambda path: paint(2).save(path.with_suffix(".png")), "which one is meant?"),
    ("link outside", IMAGE, link_outside, "a symbolic link that leads out of"),
]


@pytest.mark.parametrize(
    ("file", "breakage", "rule"), [row[1:] for row in BREAKAGES], ids=[row[0] for row in BREAKAGES]
)
def test_bad_file(folder: Path, tmp_path: Path, file: str, breakage: Callable[[Path], object], rule: str) -> None:
    breakage(folder / file)
    with pytest.raises(BadItem) as caught:
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    assert Path(file).stem in caught.value.file
    assert rule in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "set").exists()
    manifest = import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder", skip_bad=True))
    assert manifest.splits["train"].rows == 2
    assert any(rule in bad.rule and Path(file).stem in bad.file for bad in manifest.skipped)
    assert checking.check(tmp_path / "set").problems == []


def test_swapped_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "images").rename(folder / "photos")
    (folder / "labels").rename(folder / "images")
    (folder / "photos").rename(folder / "labels")
    with pytest.raises(BadItem, match=r"labels/.*are the folders swapped\?"):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    assert not (tmp_path / "set").exists()


def test_links_of_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "images/train").rename(tmp_path / "elsewhere")
    (folder / "images/train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="images/train: a symbolic link that leads out of"):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    (folder / "images/train").unlink()
    (folder / "depth").symlink_to(tmp_path / "elsewhere")  # nothing that is imported lies behind it
    (tmp_path / "elsewhere").rename(folder / "images/train")
    (folder / "images/train/loop").symlink_to(folder / "images")
    with pytest.raises(BadItem, match="loop: a symbolic link to a folder"):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))


def test_bad_sources(folder: Path, segnet: Path, tmp_path: Path) -> None:
    def importing(source: Path, kind: str = "folder", **changes: Any) -> Any:
        return import_dataset(source, tmp_path / "set", ImportOptions(kind=kind, **changes))

    with pytest.raises(UserError, match="no importer 'cityspace'; there are: cityscapes, "):
        importing(folder, "cityspace")
    with pytest.raises(UserError, match=r"nowhere: cannot be read as a folder: No such file"):
        importing(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not the layout of carla: .* it looks like folder"):
        importing(folder, "carla")
    with pytest.raises(UserError, match=r"not the layout of folder: .* it looks like camvid"):
        importing(segnet)
    with pytest.raises(UserError, match="has no split val; there are: train, test"):
        importing(folder, splits=("val",))
    with pytest.raises(UserError, match=r"pattern 'images/\{splt\}/\{path\}'"):
        importing(folder, images="images/{splt}/{path}")
    save(paint(0), folder / "images/stray.png")
    with pytest.raises(UserError, match="holds images beside folders"):
        importing(folder)
    (folder / "images/stray.png").unlink()
    (folder / "images/val").mkdir()
    with pytest.raises(UserError, match="split 'val' is empty"):
        importing(folder)
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="an archive: unpack it first"):
        importing(tmp_path / "set.zip")
    assert not (tmp_path / "set").exists()


def test_unreadable_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "images/train").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root reads everything
    try:
        with pytest.raises(UserError, match="cannot be read as a folder: Permission denied"):
            import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    finally:
        os.seteuid(user)
        (folder / "images/train").chmod(0o755)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (0, 4)}, "size"),
        ({"crop": (5, 0, 5, 4)}, "crop"),
        ({"limit": 0}, "limit"),
        ({"crop": (0, 0, 25, 4)}, r"24×16 pixels, the crop \(0, 0, 25, 4\) reaches beyond"),
    ],
)
def test_bad_options(folder: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder", **changes))


def test_a_mended_source_goes_on(folder: Path, tmp_path: Path) -> None:
    good = (folder / LABEL).read_bytes()
    truncate(folder / LABEL)
    with pytest.raises(BadItem):
        import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder"))
    (folder / LABEL).write_bytes(good)
    assert import_dataset(folder, tmp_path / "set", ImportOptions(kind="folder")).splits["train"].rows == 3


def test_camvid(segnet: Path, tmp_path: Path) -> None:
    before = files_of(segnet)
    manifest = import_dataset(segnet, tmp_path / "set", ImportOptions(kind="camvid", name="CamVid"))
    assert files_of(segnet) == before
    assert {split: content.rows for split, content in manifest.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert all(content.void == sum(content.pixels) // 11 for content in manifest.splits.values())
    assert [sample.sequence for sample in shards.list_ids(tmp_path / "set", "train")] == ["0001TP", "0016E5"]
    assert checking.check(tmp_path / "set").problems == []
    other = import_dataset(segnet, tmp_path / "other", ImportOptions(kind="camvid", taxonomy="cityscapes19"))
    assert other.options["dropped"] == ["bicyclist"]  # Cityscapes tells riders from bicycles
    person = other.taxonomy.find("person")
    assert other.splits["test"].pixels[person] == manifest.splits["test"].pixels[9]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the slice of CamVid is not here; it may not be redistributed")
def test_published_camvid(tmp_path: Path) -> None:
    manifest = import_dataset(
        CAMVID, tmp_path / "set", ImportOptions(kind="camvid", crop=(0, 60, 480, 300), size=(256, 128))
    )
    assert {split: content.labelled for split, content in manifest.splits.items()} == {"train": 12, "val": 4, "test": 8}
    sequences = {sample.sequence for split in manifest.splits for sample in shards.list_ids(tmp_path / "set", split)}
    assert sequences == {"0001TP", "0006R0", "0016E5", "Seq05VD"}
    assert all(count > 0 for count in manifest.splits["train"].pixels)
    assert checking.check(tmp_path / "set").problems == []


def test_detect(folder: Path, segnet: Path, tmp_path: Path) -> None:
    assert detect(folder) == "folder"
    assert detect(segnet) == "camvid"
    assert detect(segnet / "train") == "folder", "photographs without labels"
    (tmp_path / "empty").mkdir()
    assert detect(tmp_path / "empty") is None
    shutil.rmtree(folder / "labels")
    assert detect(folder) == "folder"
    with pytest.raises(UserError, match="cannot be read as a folder"):
        detect(tmp_path / "nowhere")


def test_simulated_set(tmp_path: Path) -> None:
    counts = {"train": 8, "test": 4}
    manifest = simulate_dataset("street", tmp_path / "set", counts=counts, width=64, height=32, seed=3)
    assert (manifest.domain, manifest.splits["train"].labelled, manifest.splits["test"].labelled) == ("real", 8, 4)
    train, test = (shards.list_ids(tmp_path / "set", split) for split in counts)
    assert not {sample.id for sample in train} & {sample.id for sample in test}
    assert len({sample.sequence for sample in train}) == 4
    (row,) = shards.read_rows(tmp_path / "set", "train", ["street-0000005"]).to_pylist()
    _, labels = simulate(5, seed=3, look="street", width=64, height=32)
    assert np.array_equal(Image.open(io.BytesIO(row["label"])), labels)
    assert checking.check(tmp_path / "set").problems == []
    shutil.rmtree(tmp_path / "set")
    more = simulate_dataset("street", tmp_path / "set", counts={"train": 9, "test": 4}, width=64, height=32, seed=3)
    assert more.splits["test"] == manifest.splits["test"]


def test_simulated_set_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="look 'rain': one of synthetic, street"):
        simulate_dataset("rain", tmp_path / "set", counts={"train": 1}, width=64, height=32)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a simulated set has train, val, test"):
        simulate_dataset("street", tmp_path / "set", counts={"trial": 1}, width=64, height=32)
    with pytest.raises(UserError, match="at least 32 pixels"):
        simulate_dataset("street", tmp_path / "set", counts={"train": 1}, width=8, height=8)
