from pathlib import Path

import pytest

from raydelta.data.listing import compile_pattern, list_pictures, pair, sequence_of, split_by_sequence
from raydelta.data.shards import Item
from raydelta.errors import UserError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_pictures_below_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "b/two.PNG", "a/one.jpg", "a/._one.jpg", ".hidden/x.png", "notes.txt")
    (tmp_path / "empty/inner").mkdir(parents=True)
    listing = list_pictures(tmp_path)
    assert [file.path for file in listing.files] == ["a/one.jpg", "b/two.PNG"]
    assert [Path(file.address) for file in listing.files] == [tmp_path / "a/one.jpg", tmp_path / "b/two.PNG"]
    assert listing.empty == ["empty/inner"]


def test_the_version_changes_with_the_content(tmp_path: Path) -> None:
    make(tmp_path, "x.png")
    before = list_pictures(tmp_path).files[0].version
    (tmp_path / "x.png").write_bytes(b"something else")
    assert list_pictures(tmp_path).files[0].version != before


@pytest.mark.parametrize(
    ("pattern", "path", "groups"),
    [
        ("images/{split}/{path}", "images/train/town/0001", {"split": "train", "path": "town/0001"}),
        ("{folder}RGB/{number}", "RAND_CITYSCAPES/RGB/0000000", {"folder": "RAND_CITYSCAPES/", "number": "0000000"}),
        ("{folder}RGB/{number}", "RGB/0000000", {"folder": "", "number": "0000000"}),
        ("{folder}RGB/{number}", "RGB/Stereo_Left/Omni_F/000000", None),
        ("{any}gtFine/{split}/{path}_labelIds", "x/gtFine/val/a/b_labelIds", {"split": "val", "path": "a/b"}),
        ("a.b/{name}", "a_b/c", None),
    ],
)
def test_patterns(pattern: str, path: str, groups: dict | None) -> None:
    match = compile_pattern(pattern).fullmatch(path)
    assert (match.groupdict() if match else None) == groups


@pytest.mark.parametrize("pattern", ["images/{spilt}/{path}", "images/{split}", "{path}/{path}", "images"])
def test_a_pattern_that_cannot_work_names_the_placeholders(pattern: str) -> None:
    with pytest.raises(UserError, match=r"placeholders \{any\}, \{split\}"):
        compile_pattern(pattern)


def test_pairs_by_what_the_patterns_share(tmp_path: Path) -> None:
    make(tmp_path, "rgb/train/a_1_rgb.jpg", "ids/train/a_1_ids.png", "ids/train/a_1_colour.png", "rgb/test/b_1_rgb.jpg")
    found = pair(tmp_path, list_pictures(tmp_path), "rgb/{split}/{name}_rgb", "ids/{split}/{name}_ids", sequence=str)
    assert found.bad == []
    assert list(found.splits) == ["train", "test"]
    (item,) = found.splits["train"]
    assert (item.id, item.label) == ("a_1", str(tmp_path / "ids/train/a_1_ids.png"))
    assert found.splits["test"][0].label is None  # a split without any label is an unlabelled one


def test_what_only_selects(tmp_path: Path) -> None:
    make(tmp_path, "images/left/1.png", "images/right/1.png", "labels/left/1.png", "labels/right/1.png")
    found = pair(tmp_path, list_pictures(tmp_path), "images/{path}", "labels/{path}", sequence=str, only="left/*")
    assert [item.id for item in found.splits["train"]] == ["left/1"]
    assert found.bad == []


@pytest.mark.parametrize(
    ("identifier", "sequence"),
    [
        ("0001TP_008550", "0001TP"),
        ("Seq05VD_f01620", "Seq05VD"),
        ("0016E5_01800", "0016E5"),
        ("0006R0_f01770", "0006R0"),
        ("aachen/aachen_000000_000019", "aachen/aachen_000000"),
        ("frame0012", "frame"),
        ("clip7/000123", "clip7"),
        ("000123", "all"),
        ("Seq05VD", "Seq05VD"),
        ("night.drive-0003", "night.drive"),
    ],
)
def test_sequence_of(identifier: str, sequence: str) -> None:
    assert sequence_of(identifier) == sequence


def items(**frames: int) -> list[Item]:
    return [Item(f"{name}/{n}", name, "", None) for name, count in frames.items() for n in range(count)]


def test_a_new_split_divides_no_sequence_and_is_seeded() -> None:
    source = items(a=50, b=10, c=10, d=10, e=10, f=10)
    splits = split_by_sequence(source, {"train": 0.8, "test": 0.2}, seed=1)
    assert sorted(splits["train"] + splits["test"]) == sorted(source)
    assert not {item.sequence for item in splits["train"]} & {item.sequence for item in splits["test"]}
    assert len(splits["test"]) == 20
    assert splits == split_by_sequence(source, {"train": 0.8, "test": 0.2}, seed=1)
    chosen = {tuple(split_by_sequence(source, {"train": 0.8, "test": 0.2}, seed)["test"]) for seed in range(8)}
    assert len(chosen) > 1


def test_a_small_share_gets_a_sequence_too() -> None:
    splits = split_by_sequence(items(a=50, b=50), {"train": 0.95, "test": 0.05}, seed=0)
    assert (len(splits["train"]), len(splits["test"])) == (50, 50)


def test_too_few_sequences_to_split() -> None:
    with pytest.raises(UserError, match=r"2 splits .* there are 1 \(all\)"):
        split_by_sequence(items(all=100), {"train": 0.8, "test": 0.2}, seed=0)
    with pytest.raises(UserError, match="above 0"):
        split_by_sequence(items(a=1, b=1), {"train": 1.0, "test": 0.0}, seed=0)
