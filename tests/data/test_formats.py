"""Published layouts, made here with small pictures, and the traps that each is known for."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import kornia_rs
import numpy as np
import pytest
from PIL import Image

from raydelta.data import checking, shards
from raydelta.data.decoding import decode_label
from raydelta.data.formats import FORMATS, detect
from raydelta.data.importers import ImportOptions, import_dataset
from raydelta.data.shards import BadItem
from raydelta.data.tables import read_table
from raydelta.data.taxonomy import IGNORE, get_taxonomy
from raydelta.errors import UserError

WIDTH, HEIGHT = 24, 16
ORIGINAL = Path(__file__).parents[2] / "../shared/data/original"
SEQS_FRAME = ORIGINAL / "synthia-seqs-1frame"

pytestmark = pytest.mark.usefixtures("ray_session")


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def stripes(values: list[int]) -> np.ndarray:
    """[H, W]: columns of the values, the last row of the picture all the last value."""
    return np.resize(np.array(values, dtype=np.uint16), (HEIGHT, WIDTH))


def plain(path: Path, values: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stripes(values).astype(np.uint8)).save(path)


def palette(path: Path, values: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(stripes(values).astype(np.uint8))
    colours = [[index, 255 - index, 7] for index in range(256)]
    colours[7] = [128, 64, 128]
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)


def synthia(path: Path, values: list[int]) -> None:
    """16-bit RGB: class in the first channel, instance in the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint16)
    channels[..., 0], channels[..., 1] = stripes(values), 193
    kornia_rs.io.write_image_png_u16(str(path), channels, "rgb")


def red(path: Path, values: list[int]) -> None:
    """RGBA with the class in red, as CARLA saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    channels[..., 0], channels[..., 3] = stripes(values), 255
    Image.fromarray(channels).save(path)


def colours(path: Path, values: list[int]) -> None:
    """RGBA with CARLA's colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = read_table("carla").colours
    channels = np.full((HEIGHT, WIDTH, 4), 255, dtype=np.uint8)
    for value in values:
        channels[stripes(values) == value, :3] = table[value][0]
    Image.fromarray(channels).save(path)


# kind: (image, label) files of two samples, how a label is written, the values in it and what they mean.
CASES: dict[str, tuple[list[tuple[str, str]], Callable[[Path, list[int]], None], dict[int, str | None]]] = {
    "cityscapes": (
        [
            (f"leftImg8bit/train/{name}_leftImg8bit.png", f"gtFine/train/{name}_gtFine_labelIds.png")
            for name in ("aachen/aachen_000000_000019", "ulm/ulm_000001_000019")
        ],
        plain,
        {0: None, 3: None, 7: "road", 8: "sidewalk", 24: "person", 25: "rider", 29: None, 33: "bicycle", 255: None},
    ),
    "idd": (
        [
            (f"leftImg8bit/train/{name}_leftImg8bit.jpg", f"gtFine/train/{name}_gtFine_labellevel3Ids.png")
            for name in ("0/024541", "1/000123")
        ],
        plain,
        {0: "road", 1: None, 4: "person", 9: "car", 25: "sky", 255: None},
    ),
    "synthia-rand": (
        [(f"RAND_CITYSCAPES/RGB/{n:07d}.png", f"RAND_CITYSCAPES/GT/LABELS/{n:07d}.png") for n in (0, 9399)],
        synthia,
        {0: None, 1: "sky", 3: "road", 10: "person", 12: "motorcycle", 17: "rider", 21: "wall", 22: None},
    ),
    "synthia-seqs": (
        [
            (f"{drive}/RGB/Stereo_Left/Omni_F/000007.png", f"{drive}/GT/LABELS/Stereo_Left/Omni_F/000007.png")
            for drive in ("SYNTHIA-SEQS-05-SPRING", "SYNTHIA-SEQS-01-DAWN")
        ],
        synthia,
        {0: None, 1: "sky", 3: "road", 11: "bicycle", 12: None, 15: "traffic light"},
    ),
    "synthia-sf": (
        [(f"SEQ{n}/RGBLeft/0000001.png", f"SEQ{n}/GTLeft/0000001.png") for n in (1, 2)],
        synthia,
        {0: None, 1: "road", 3: "building", 11: "sky", 12: "person", 19: "bicycle", 20: "road", 22: None},
    ),
    "gta5": (
        [(f"images/{n:05d}.png", f"labels/{n:05d}.png") for n in (1, 24966)],
        palette,
        {0: None, 7: "road", 11: "building", 23: "sky", 33: "bicycle", 34: None},
    ),
    "camvid": (
        [(f"train/{name}.png", f"trainannot/{name}.png") for name in ("0001TP_006690", "0016E5_01800")],
        plain,
        {0: "sky", 3: "road", 10: "bicyclist", 11: None},
    ),
    "carla": (
        [(f"data{part}/CameraRGB/02_00_000.png", f"data{part}/CameraSeg/02_00_000.png") for part in "AB"],
        red,
        {0: None, 1: "building", 6: "road", 7: "road", 10: "car", 12: "traffic sign", 13: "sky"},
    ),
    "carla-0.9.14": (
        [(f"data{part}/CameraRGB/02_00_000.png", f"data{part}/CameraSeg/02_00_000.png") for part in "AB"],
        red,
        {0: None, 1: "road", 3: "building", 11: "sky", 14: "car", 24: "road"},
    ),
    "folder": (
        [(f"images/train/clip{n}_0001.jpg", f"labels/train/clip{n}_0001.png") for n in (1, 2)],
        plain,
        {0: "sky", 10: "bicyclist", 255: None},
    ),
}


def build(kind: str, root: Path) -> Path:
    files, write_label, values = CASES[kind]
    for image, label in files:
        photo(root / image)
        write_label(root / label, list(values))
    return root


def stored(target: Path, split: str = "train") -> list[np.ndarray]:
    return [decode_label(row["label"]) for row in shards.read_rows(target, split).to_pylist()]


def test_every_format_has_a_case() -> None:
    assert CASES.keys() == FORMATS.keys()


@pytest.mark.parametrize("kind", CASES)
def test_import(kind: str, tmp_path: Path) -> None:
    source = build(kind, tmp_path / "source")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    assert detect(source) == kind.removesuffix("-0.9.14")  # the two of CARLA lie alike
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind=kind))
    classes = manifest.taxonomy
    assert classes == get_taxonomy(FORMATS[kind].taxonomy)
    assert manifest.domain == ("real" if kind in ("cityscapes", "idd", "camvid", "folder") else "synthetic")
    values = CASES[kind][2]
    wanted = {value: IGNORE if name is None else classes.find(name) for value, name in values.items()}
    expected = np.vectorize(wanted.__getitem__)(stripes(list(values)))
    labels = stored(tmp_path / "set")
    assert len(labels) == 2
    assert all(np.array_equal(label, expected) for label in labels)
    assert len({sample.sequence for sample in shards.list_ids(tmp_path / "set", "train")}) == 2
    assert checking.check(tmp_path / "set").problems == []
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


@pytest.mark.parametrize("kind", CASES)
def test_bad_files_of_every_format(kind: str, tmp_path: Path) -> None:
    source = build(kind, tmp_path / "source")
    image, label = CASES[kind][0][1]
    content = (source / label).read_bytes()
    (source / label).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadItem, match="cannot be decoded") as caught:
        import_dataset(source, tmp_path / "set", ImportOptions(kind=kind))
    assert caught.value.file.endswith(label)
    CASES[kind][1](source / label, [199])
    with pytest.raises(BadItem, match=r"ids|indices|red") as caught:
        import_dataset(source, tmp_path / "set", ImportOptions(kind=kind))
    assert caught.value.file.endswith(label)
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind=kind, skip_bad=True))
    assert [Path(bad.file).name for bad in manifest.skipped] == [Path(label).name]
    assert manifest.splits["train"].rows == 1
    (source / image).unlink()
    with pytest.raises(BadItem, match="the label has no image"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind=kind))
    assert not (tmp_path / "other").exists()


def test_synthia_reads_zeros_with_pillow(tmp_path: Path) -> None:
    """The trap itself, so that the day Pillow reads 16 bits is noticed."""
    synthia(tmp_path / "label.png", [3, 12])
    assert np.asarray(Image.open(tmp_path / "label.png")).max() == 0


def test_16_bit_colour_masks_in_any_folder_are_refused_with_the_way_out(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    synthia(source / "labels/train/clip1_0001.png", [3])
    with pytest.raises(BadItem, match=r"16-bit colour picture.*--kind synthia-rand"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))
    red(source / "labels/train/clip1_0001.png", [3])
    with pytest.raises(BadItem, match=r"only its red channel is used.*--kind carla"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))


def test_colour_folders_are_not_labels(tmp_path: Path) -> None:
    source = build("synthia-rand", tmp_path / "source")
    photo(source / CASES["synthia-rand"][0][0][1])
    with pytest.raises(BadItem, match="offer the folder GT/LABELS, not GT/COLOR"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="synthia-rand"))


def test_labels_that_are_all_void(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for image, label in CASES["synthia-rand"][0]:
        photo(source / image)
        synthia(source / label, [0])
    with pytest.raises(UserError, match=r"0000000\.png: every pixel is void, as in 1 more labels"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="synthia-rand"))


def test_frames_of_seqs_are_not_taken_for_rand(tmp_path: Path) -> None:
    source = build("synthia-seqs", tmp_path / "source")
    with pytest.raises(UserError, match=r"not the layout of synthia-rand: .* it looks like synthia-seqs"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="synthia-rand"))


def test_carla_colours(tmp_path: Path) -> None:
    source = build("carla", tmp_path / "source")
    label = source / CASES["carla"][0][0][1]
    values = [1, 7, 10]
    colours(label, values)
    import_dataset(source, tmp_path / "set", ImportOptions(kind="carla"))
    classes = get_taxonomy("cityscapes19")
    wanted = {1: classes.find("building"), 7: classes.find("road"), 10: classes.find("car")}
    assert np.array_equal(stored(tmp_path / "set")[0], np.vectorize(wanted.__getitem__)(stripes(values)))
    photo(label)
    with pytest.raises(BadItem, match="colours that are not in its palette: #"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind="carla"))


def paint_stray(label: Path, pixels: int, colour: tuple[int, int, int] = (250, 170, 160)) -> None:
    """What CARLA before 0.9.10 paints as "other"."""
    channels = np.asarray(Image.open(label)).copy()
    channels.reshape(-1, channels.shape[-1])[:pixels, :3] = colour
    Image.fromarray(channels).save(label)


def test_a_few_pixels_of_an_unknown_colour_are_void(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for part in "AB":
        path = source / f"data{part}/CameraRGB/02_00_000.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (80, 50)).save(path)
        label = source / f"data{part}/CameraSeg/02_00_000.png"
        label.parent.mkdir()
        Image.new("RGBA", (80, 50), (128, 64, 128, 255)).save(label)
        paint_stray(label, 4)  # of 4,000
    with pytest.warns(UserWarning, match=r"the colour #faaaa0 is not in the palette; .*void \(in 2 files\)"):
        manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="carla"))
    assert manifest.splits["train"].void == 8
    paint_stray(label, 5)
    with pytest.raises(BadItem, match=r"not in its palette: #faaaa0 \(250, 170, 160\); an --ids file .*\"#faaaa0\": "):
        import_dataset(source, tmp_path / "more", ImportOptions(kind="carla"))
    (tmp_path / "ids.yaml").write_text('"#faaaa0": building\n')
    more = import_dataset(source, tmp_path / "more", ImportOptions(kind="carla", ids=str(tmp_path / "ids.yaml")))
    assert more.splits["train"].void == 0
    assert more.splits["train"].pixels[more.taxonomy.find("building")] == 9
    assert more.splits["train"].pixels[more.taxonomy.find("road")] == 7991


def test_any_palette(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    painted = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    painted[: HEIGHT // 2], painted[HEIGHT // 2 :] = (1, 2, 3), (200, 0, 0)
    for label in source.glob("labels/train/*.png"):
        Image.fromarray(painted).save(label)
    (tmp_path / "ids.yaml").write_text('"#010203": sky\n"#c80000": road\n"#ff0000": road\n"#000000": void\n')
    import_dataset(source, tmp_path / "set", ImportOptions(ids=str(tmp_path / "ids.yaml")))
    taxonomy = get_taxonomy("camvid11")
    (label, _) = stored(tmp_path / "set")
    assert np.array_equal(np.unique(label[: HEIGHT // 2]), [taxonomy.find("sky")])
    assert np.array_equal(np.unique(label[HEIGHT // 2 :]), [taxonomy.find("road")])


def test_mismatched_pairs_of_gta5_are_skipped_and_listed(tmp_path: Path) -> None:
    source = build("gta5", tmp_path / "source")
    Image.new("P", (12, 8), 7).save(source / "labels/00001.png")
    with pytest.raises(BadItem, match=r"00001\.png: the label has 12×8 pixels, its image 24×16"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="gta5"))
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="gta5", skip_bad=True))
    assert [Path(bad.file).name for bad in manifest.skipped] == ["00001.png"]


def test_cityscapes_test_labels_are_dummies_and_its_splits_stay(tmp_path: Path) -> None:
    source = build("cityscapes", tmp_path / "source")
    for split, city in (("val", "lindau/lindau_000000_000019"), ("test", "berlin/berlin_000000_000019")):
        photo(source / f"leftImg8bit/{split}/{city}_leftImg8bit.png")
        plain(source / f"gtFine/{split}/{city}_gtFine_labelIds.png", [3] if split == "test" else [7])
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="cityscapes"))
    labelled = {split: content.labelled for split, content in manifest.splits.items()}
    assert labelled == {"train": 2, "val": 1, "test": 0}
    assert [sample.sequence for sample in shards.list_ids(tmp_path / "set", "train")] == [
        "aachen/aachen_000000",
        "ulm/ulm_000001",
    ]


def test_cityscapes_without_labels_and_unpacked_into_two_folders(tmp_path: Path) -> None:
    source = build("cityscapes", tmp_path / "source")
    (source / "images").mkdir()
    (source / "leftImg8bit").rename(source / "images/leftImg8bit")
    assert import_dataset(source, tmp_path / "set", ImportOptions(kind="cityscapes")).splits["train"].labelled == 2
    (source / "gtFine").rename(tmp_path / "gtFine")
    assert detect(source) == "cityscapes"
    assert import_dataset(source, tmp_path / "photos", ImportOptions(kind="cityscapes")).splits["train"].labelled == 0


def test_a_new_split_of_camvid_keeps_sequences_whole(tmp_path: Path) -> None:
    source = build("camvid", tmp_path / "source")
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="camvid", shares={"train": 0.5, "val": 0.5}))
    assert {split: content.rows for split, content in manifest.splits.items()} == {"train": 1, "val": 1}


def test_a_val_out_of_a_training_sequence_is_doubted(tmp_path: Path) -> None:
    source = build("camvid", tmp_path / "source")
    for split, name in (("val", "0016E5_08109"), ("test", "Seq05VD_f01620")):
        photo(source / f"{split}/{name}.png")
        plain(source / f"{split}annot/{name}.png", [3])
    import_dataset(source, tmp_path / "set", ImportOptions(kind="camvid"))
    (doubt,) = checking.check(tmp_path / "set").doubts
    assert "split val: every image is from a sequence that train has images of too (0016E5)" in doubt


def test_own_palette_masks_are_not_taken_for_gta5(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    for number in (1, 2):
        photo(source / f"other/images/{number:05d}.png")
        picture = Image.fromarray(stripes([0, 3]).astype(np.uint8))
        picture.putpalette([value for index in range(256) for value in (index, 2 * index % 256, 7)])
        (source / "other/labels").mkdir(parents=True, exist_ok=True)
        picture.save(source / f"other/labels/{number:05d}.png")
    assert detect(source / "other") == "folder"


def test_folders_of_clips_are_no_splits(tmp_path: Path) -> None:
    for clip in ("clip1", "clip2"):
        photo(tmp_path / f"source/images/{clip}/0001.png")
        plain(tmp_path / f"source/labels/{clip}/0001.png", [3])
    import_dataset(tmp_path / "source", tmp_path / "set", ImportOptions(kind="folder"))
    assert [sample.sequence for sample in shards.list_ids(tmp_path / "set", "train")] == ["clip1", "clip2"]


def test_ids_of_fewer_bits_and_grey_palettes(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    label = source / "labels/train/clip1_0001.png"
    header = np.resize(np.array([0, 1, 3], dtype=np.uint8), (HEIGHT, WIDTH))
    write_four_bits(label, header)
    import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))
    assert np.array_equal(stored(tmp_path / "set")[0], header)
    picture = Image.fromarray(np.resize(np.array([0, 1, 2], dtype=np.uint8), (HEIGHT, WIDTH)))
    picture.putpalette([0, 0, 0, 3, 3, 3, 10, 10, 10])
    picture.save(label)
    with pytest.raises(BadItem, match="grey picture with a palette"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind="folder"))


def write_four_bits(path: Path, values: np.ndarray) -> None:
    """A grey PNG of 4 bits, which Pillow reads scaled to 0..255 and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes((row[::2] << 4 | row[1::2]).tolist()) for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 4, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_labels_that_are_nowhere(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    with pytest.raises(UserError, match=r"no label is at lables/\{split\}/\{path\}"):
        import_dataset(
            source,
            tmp_path / "set",
            ImportOptions(kind="folder", images="images/{split}/{path}", labels="lables/{split}/{path}"),
        )
    shutil.rmtree(source / "labels")
    with pytest.warns(UserWarning, match="the images are imported without labels"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))
    with pytest.raises(UserError, match="both need the same placeholders"):
        import_dataset(
            source,
            tmp_path / "other",
            ImportOptions(kind="folder", images="images/{split}/{path}", labels="masks/{path}"),
        )
    with pytest.raises(UserError, match="no image id matches --only"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind="folder", only="nothing*"))


def test_what_lies_beside_camvid_is_no_split_of_it(tmp_path: Path) -> None:
    source = build("camvid", tmp_path / "source")
    photo(source / "predictions/0001TP_006690.png")
    (source / "__MACOSX").mkdir()
    (source / "__MACOSX/._train").write_bytes(b"")
    (source / "checkpoints").mkdir()
    assert list(import_dataset(source, tmp_path / "set", ImportOptions(kind="camvid")).splits) == ["train"]


def test_a_new_split_takes_labelled_images_and_tells_equal_names_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split in ("train", "val", "test"):
        photo(source / f"images/{split}/a_0001.png")
        if split != "test":
            plain(source / f"labels/{split}/a_0001.png", [3])
    manifest = import_dataset(
        source, tmp_path / "set", ImportOptions(kind="folder", shares={"train": 0.5, "test": 0.5})
    )
    assert {split: content.labelled for split, content in manifest.splits.items()} == {"train": 1, "test": 1}


def test_own_patterns_and_own_ids(tmp_path: Path) -> None:
    source = tmp_path / "lite"
    for split in ("train", "val"):
        photo(source / f"leftImg8bit/{split}/135/330189_image.jpg")
        plain(source / f"gtFine/{split}/135/330189_label.png", [0, 6, 255])
    (tmp_path / "ids.yaml").write_text("{0: road, 6: sky, 255: void}")
    own = {
        "images": "leftImg8bit/{split}/{path}_image",
        "labels": "gtFine/{split}/{path}_label",
        "ids": str(tmp_path / "ids.yaml"),
    }
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="folder", **own, taxonomy="synthia13"))
    assert {split: content.labelled for split, content in manifest.splits.items()} == {"train": 1, "val": 1}
    present = {manifest.taxonomy.classes[i] for i, count in enumerate(manifest.splits["val"].pixels) if count}
    assert present == {"road", "sky"}
    (tmp_path / "ids.yaml").write_text("{0: lawn, 6: pond, 255: void}")
    with pytest.raises(UserError, match="none of the names in the id table"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind="folder", **own))


def test_ids_that_fit_another_table_are_recognised(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    plain(source / "labels/train/clip1_0001.png", [7, 26, 33])
    with pytest.raises(BadItem, match=r"\[26, 33\].*all of its values are in: cityscapes, gta5"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))


def test_streets_without_road_below_are_doubted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(6):
        photo(source / f"images/train/a_{number}.png")
        plain(source / f"labels/train/a_{number}.png", [1, 2])
    with pytest.warns(UserWarning, match="road covers 0.0% of the lower quarter of 6 labels"):
        import_dataset(source, tmp_path / "set", ImportOptions(kind="folder"))
    for number in range(6):
        plain(
            source / f"labels/train/a_{number}.png", [0, 1]
        )  # road and pavement of Cityscapes, sky and houses of CamVid
    with pytest.raises(UserError, match="read as ids of cityscapes19 it covers 50%"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind="folder"))
    with pytest.warns(UserWarning, match="road covers 0.0% of the lower quarter of 6 labels"):
        import_dataset(source, tmp_path / "other", ImportOptions(kind="folder", ids="camvid11"))


@pytest.mark.skipif(not SEQS_FRAME.is_dir(), reason="the frame of SYNTHIA-SEQS is not here")
def test_published_frame_of_synthia(tmp_path: Path) -> None:
    assert detect(SEQS_FRAME) == "synthia-seqs"
    manifest = import_dataset(
        SEQS_FRAME, tmp_path / "set", ImportOptions(kind="synthia-seqs", taxonomy="synthia16", size=(640, 380))
    )
    assert manifest.options["dropped"] == ["lane marking"]
    share = dict(zip(manifest.taxonomy.classes, manifest.splits["train"].pixels, strict=True))
    assert max(share, key=share.__getitem__) in ("road", "building", "sky")
    assert share["road"] > 0 and share["motorcycle"] == 0
    assert checking.check(tmp_path / "set").problems == []


def test_bytes_are_taken_over(tmp_path: Path) -> None:
    source = build("cityscapes", tmp_path / "source")
    import_dataset(source, tmp_path / "set", ImportOptions(kind="cityscapes"))
    row = shards.read_rows(tmp_path / "set", "train").to_pylist()[0]
    assert row["image"] == (source / CASES["cityscapes"][0][0][0]).read_bytes()
    assert Image.open(io.BytesIO(row["image"])).size == (WIDTH, HEIGHT)
