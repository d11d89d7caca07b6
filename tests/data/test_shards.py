import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydelta.data import checking, decoding, shards, writing
from raydelta.data.shards import BadItem, Description, Item, Manifest, StoredRow
from raydelta.data.taxonomy import CAMVID11
from raydelta.errors import UserError

WIDTH, HEIGHT = 24, 16
SPLITS = {
    "train": [Item(f"train_{index:03d}", f"drive{index // 10}", str(index), "") for index in range(40)],
    "train-extra": [Item(f"extra_{index:03d}", "extra", str(100 + index), None) for index in range(3)],
}


def encode(item: Item) -> StoredRow:
    """Noise that the item's number seeds; every fifth one has no label, as have those of no label file."""
    rng = np.random.default_rng(int(item.image))
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = rng.choice(np.array([*range(11), 255], dtype=np.uint8), (HEIGHT, WIDTH))
    labelled = item.label is not None and int(item.image) % 5
    return StoredRow(
        id=item.id,
        sequence=item.sequence,
        image=writing.encode_jpeg(Image.fromarray(image)),
        label=writing.encode_label(mask) if labelled else None,
        height=HEIGHT,
        width=WIDTH,
    )


def encode_while(item: Item, broken: str, wait_for: str) -> StoredRow:
    """Refuses item 20 while a file exists, but not before another shard is there."""
    if item.id == "train_020" and Path(broken).exists():
        deadline = time.monotonic() + 10
        while not Path(wait_for).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        raise BadItem("photo 20", "is broken")
    return encode(item)


def encode_noise(item: Item) -> StoredRow:
    """Some 60 kB that nothing can compress."""
    image = np.random.default_rng(int(item.image)).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    encoded = writing.encode_jpeg(Image.fromarray(image))
    return StoredRow(id=item.id, sequence=item.sequence, image=encoded, label=None, height=128, width=128)


def write(target: Path, encoder=encode, splits=SPLITS, **changes) -> Manifest:
    described = {"name": "dots", "domain": "real", "taxonomy": CAMVID11, "source": "a test", "options": {}}
    description = Description(**{name: changes.pop(name, value) for name, value in described.items()})
    return writing.write_dataset(target, splits, encoder, description, **({"rows_per_shard": 10} | changes))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    target = tmp_path_factory.mktemp("data") / "dots"
    write(target)
    return target


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A data set to break."""
    target = tmp_path / "copy"
    target.mkdir()
    for file in dataset.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def replace_first_row(target: Path, **values: object) -> None:
    """Forge a shard together with its entry in the manifest."""
    path = target / "train-00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= values
    pq.write_table(pa.Table.from_pylist(rows, shards.SCHEMA), path)
    manifest = json.loads((target / "manifest.json").read_text())
    data = path.read_bytes()
    labelled = sum(row["label"] is not None for row in rows)
    manifest["splits"]["train"]["shards"][0] |= {
        "bytes": len(data),
        "labelled": labelled,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (target / "manifest.json").write_text(json.dumps(manifest))


def test_import_is_light() -> None:
    code = "import sys, raydelta.data.shards; assert not {'ray', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


# Writing


def test_rows_come_back_as_written(dataset: Path) -> None:
    expected = [encode(item) for item in SPLITS["train"]]
    assert shards.read_rows(dataset, "train").to_pylist() == expected


def test_manifest_counts_what_is_stored(dataset: Path) -> None:
    manifest = shards.read_manifest(dataset)
    train = manifest.splits["train"]
    assert [shard.rows for shard in train.shards] == [10, 10, 10, 10]
    assert (train.rows, train.labelled) == (40, 32)
    assert sum(train.pixels) + train.void == 32 * WIDTH * HEIGHT
    assert (manifest.splits["train-extra"].rows, manifest.splits["train-extra"].labelled) == (3, 0)
    assert checking.check(dataset).problems == []


def test_same_items_give_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    assert again == shards.read_manifest(dataset)
    assert shards.data_fingerprint(tmp_path / "again") == shards.data_fingerprint(dataset)


def test_progress_ends_at_all_rows(tmp_path: Path, ray_session: None) -> None:
    calls: list[tuple[int, int, str]] = []
    write(tmp_path / "set", progress=lambda *call: calls.append(call))
    assert len(calls) == 5
    assert calls[-1][:2] == (43, 43)
    assert sorted(call[2] for call in calls)[-1] == "train-extra-00000.parquet"


def test_existing_target_is_left_alone(dataset: Path) -> None:
    with pytest.raises(UserError, match="exists already; remove it or choose another"):
        write(dataset)


def test_interrupted_write_goes_on(tmp_path: Path, ray_session: None) -> None:
    target, unfinished, marker = tmp_path / "set", tmp_path / "set.partial", tmp_path / "broken"
    first = unfinished / "train-00000.parquet"
    marker.touch()
    encoder = partial(encode_while, broken=str(marker), wait_for=str(first))
    with pytest.raises(BadItem, match=r"^photo 20: is broken$"):
        write(target, encoder)
    assert not target.exists()
    assert not (unfinished / "train-00002.parquet").exists()
    with pytest.raises(UserError, match="interrupted: run the same command again"):
        shards.read_manifest(target)
    written = first.stat()
    marker.unlink()
    write(target, encoder)
    resumed = (target / first.name).stat()
    assert (resumed.st_ino, resumed.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert not unfinished.exists()
    assert checking.check(target).problems == []


def test_other_inputs_start_afresh(tmp_path: Path, ray_session: None) -> None:
    target, marker = tmp_path / "set", tmp_path / "broken"
    first = tmp_path / "set.partial" / "train-00000.parquet"
    marker.touch()
    with pytest.raises(BadItem):
        write(target, partial(encode_while, broken=str(marker), wait_for=str(first)))
    written = first.stat()
    manifest = write(target, options={"size": [1, 2]}, splits={"train": SPLITS["train"][:20]})
    assert (target / first.name).stat().st_ino != written.st_ino
    assert sorted(path.name for path in target.glob("*.parquet")) == ["train-00000.parquet", "train-00001.parquet"]
    assert manifest.options == {"size": [1, 2]}


def test_skip_bad_lists_what_is_missing(tmp_path: Path, ray_session: None) -> None:
    marker = tmp_path / "broken"
    marker.touch()
    encoder = partial(encode_while, broken=str(marker), wait_for=str(marker))
    manifest = write(tmp_path / "set", encoder, skip_bad=True, skipped=[BadItem("photo 7", "is lost")])
    assert [(bad.file, bad.rule) for bad in manifest.skipped] == [("photo 7", "is lost"), ("photo 20", "is broken")]
    assert manifest.splits["train"].rows == 39
    report = checking.format_report(checking.check(tmp_path / "set"))
    assert "2 skipped" in report
    assert "photo 20" in report


def test_a_split_that_is_skipped_whole_is_an_error(tmp_path: Path, ray_session: None) -> None:
    marker = tmp_path / "broken"
    marker.touch()
    encoder = partial(encode_while, broken=str(marker), wait_for=str(marker))
    with pytest.raises(UserError, match="every image of it was skipped"):
        write(tmp_path / "set", encoder, splits={"train": SPLITS["train"][20:21]}, skip_bad=True)


@pytest.mark.parametrize("identifier", ["../up", "/absolute", "a//b", "nul\0", ".", "back\\slash"])
def test_ids_that_lead_elsewhere_are_refused(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(UserError, match="leads elsewhere"):
        write(tmp_path / "set", splits={"train": [Item(identifier, "s", "0", None)]})


def test_bad_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'val' is empty"):
        write(tmp_path / "set", splits={"val": []})
    with pytest.raises(UserError, match="occurs 2 times"):
        write(tmp_path / "set", splits={"val": [SPLITS["train"][0]] * 2})
    with pytest.raises(UserError, match="nothing to write"):
        write(tmp_path / "set", splits={})
    with pytest.raises(UserError, match="a name of letters"):
        write(tmp_path / "set", splits={"../val": SPLITS["train"]})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system to fill")
def test_full_disk(tmp_path: Path, ray_session: None) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        splits = {"train": SPLITS["train"][:20]}
        with pytest.raises(UserError, match=r"set\.partial.*No space left on device; what is finished is kept"):
            write(disk / "set", encode_noise, splits=splits)
        assert not (disk / "set").exists()
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        write(disk / "set", encode_noise, splits=splits)
        assert checking.check(disk / "set").problems == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    task = writing._make_task("train-00000.parquet", SPLITS["train"][:10], {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        row = {"task": task.model_dump_json()}
        result = writing._write_shard(row, folder=str(tmp_path), encode=encode_noise, classes=11, skip_bad=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in result["result"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.filterwarnings("ignore:.*another command is making it")
def test_two_writes_to_one_target(tmp_path: Path, ray_session: None, same: bool) -> None:
    def run(number: int) -> Manifest | UserError:
        try:
            return write(tmp_path / "set", options={"seed": 0 if same else number})
        except UserError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run, range(2)))
    written = shards.read_manifest(tmp_path / "set")
    assert checking.check(tmp_path / "set").problems == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    if same:
        assert outcomes == [written, written]
    else:
        failed = [outcome for outcome in outcomes if isinstance(outcome, UserError)]
        assert [outcome for outcome in outcomes if outcome == written] == [written]
        assert len(failed) == 1 and "exists already" in str(failed[0])


def test_a_shard_that_changed_while_the_others_were_written_is_noticed(tmp_path: Path, ray_session: None) -> None:
    first = tmp_path / "set.partial/train-00000.parquet"

    def change(done: int, total: int, note: str) -> None:
        content = bytearray(first.read_bytes()) if first.exists() else b""
        if content:
            content[len(content) // 2] ^= 1  # as long as before
            first.write_bytes(content)

    with pytest.raises(UserError, match=r"something else writes there too \(train-00000\.parquet has changed\)"):
        write(tmp_path / "set", progress=change, splits={"train": SPLITS["train"][:10]})
    assert not (tmp_path / "set").exists()


# Reading


def test_list_ids(dataset: Path) -> None:
    samples = shards.list_ids(dataset, "train")
    assert samples[:2] == [("train_000", "drive0", False), ("train_001", "drive0", True)]
    assert [sample.labelled for sample in samples] == [bool(index % 5) for index in range(40)]


def test_rows_of_some_ids_and_columns(dataset: Path) -> None:
    table = shards.read_rows(dataset, "train", ["train_033", "train_002"], columns=["id", "label"])
    assert table.column_names == ["id", "label"]
    assert table["id"].to_pylist() == ["train_002", "train_033"]
    assert shards.read_rows(dataset, "train", [], columns=["image"]).num_rows == 0


def test_unknown_ids_and_splits_are_named(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"no id nobody \(1 of 2 unknown\)"):
        shards.read_rows(dataset, "train", ["nobody", "train_001"])
    with pytest.raises(UserError, match="no split 'val'; there are: train, train-extra"):
        shards.list_ids(dataset, "val")


def test_reads_a_file_address(dataset: Path) -> None:
    for uri in (f"file://{dataset}", str(dataset) + "/"):
        assert shards.read_manifest(uri).splits["train"].rows == 40
        assert shards.read_rows(uri, "train", ["train_007"]).num_rows == 1
        assert checking.check(uri).problems == []
        assert shards.list_shards(uri, "train")[0][0].endswith("dots/train-00000.parquet")


def test_no_data_set_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a data set: it has no manifest\.json"):
        shards.read_manifest(tmp_path)
    with pytest.raises(UserError, match="no way to read such an address"):
        shards.read_manifest("carrierpigeon://coop/set")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://[::1", "not an address: Invalid IPv6 URL"),
        ("http://127.0.0.1:99999/x", "not an address: Port out of range"),
        ("http://127.0.0.1:1/x", "not a data set: it cannot be listed: Cannot connect"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        shards.read_manifest(address)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ('{"format": 1', "is damaged"),
        ('{"format": 1, "name": "x"}', "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 99, "wings": 2}', "format 99 is newer than this raydelta reads"),
    ],
)
def test_damaged_manifests(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        shards.read_manifest(tmp_path)


def test_a_manifest_cannot_point_elsewhere(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace("train-00000.parquet", "../train-00000.parquet"))
    with pytest.raises(UserError, match="is damaged"):
        shards.read_manifest(copy)


def test_a_lost_shard_is_named(copy: Path) -> None:
    (copy / "train-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001\.parquet: shard cannot be read"):
        shards.read_rows(copy, "train")


# Decoding


def test_decode(dataset: Path) -> None:
    batch = decoding.decode(shards.read_rows(dataset, "train"), None, with_labels=True, num_classes=11)
    assert batch["id"] == [item.id for item in SPLITS["train"]]
    assert (batch["image"].shape, batch["image"].dtype) == ((40, 3, HEIGHT, WIDTH), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((40, HEIGHT, WIDTH), np.uint8)
    assert (batch["label"][0] == 255).all()
    row = encode(SPLITS["train"][1])
    assert row["label"] is not None
    assert np.array_equal(batch["image"][1].transpose(1, 2, 0), Image.open(io.BytesIO(row["image"])))
    assert np.array_equal(batch["label"][1], Image.open(io.BytesIO(row["label"])))


def test_decode_takes_ray_batches_and_resizes(dataset: Path) -> None:
    table = shards.read_rows(dataset, "train", ["train_001", "train_002"])
    rows = {name: np.array(table[name].to_pylist(), dtype=object) for name in ("id", "image")}
    batch = decoding.decode(rows, (8, 4), with_labels=False, num_classes=11)
    assert batch.keys() == {"id", "image"}
    assert batch["image"].shape == (2, 3, 4, 8)
    labels = decoding.decode(table, (6, 8), with_labels=True, num_classes=11)["label"]
    assert set(np.unique(labels)) <= {*range(11), 255}


def test_decode_of_nothing_has_a_shape(dataset: Path) -> None:
    batch = decoding.decode(shards.read_rows(dataset, "train", []), (8, 4), with_labels=True, num_classes=11)
    assert (batch["image"].shape, batch["label"].shape) == ((0, 3, 4, 8), (0, 4, 8))


def test_decode_names_the_row(dataset: Path) -> None:
    rows = shards.read_rows(dataset, "train", ["train_001", "train_002"]).to_pydict()
    with pytest.raises(UserError, match=r"row 'train_001'.*there are 5 classes"):
        decoding.decode(rows, None, with_labels=True, num_classes=5)
    broken = rows | {"image": [rows["image"][0], rows["image"][1][:200]]}
    with pytest.raises(UserError, match="row 'train_002' cannot be decoded"):
        decoding.decode(broken, None, with_labels=False, num_classes=11)
    twice_as_large = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT))
    mixed = rows | {"image": [rows["image"][0], writing.encode_jpeg(twice_as_large)]}
    with pytest.raises(UserError, match=r"row 'train_002'.*give a size"):
        decoding.decode(mixed, None, with_labels=False, num_classes=11)


# Checking


def test_check_finds_a_flipped_bit(copy: Path) -> None:
    path = copy / "train-00002.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert any(
        "train-00002.parquet: its checksum is not the manifest's" in text for text in checking.check(copy).problems
    )


def test_check_finds_files_that_are_lost_cut_or_strange(copy: Path) -> None:
    (copy / "train-00001.parquet").unlink()
    path = copy / "train-00003.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    pq.write_table(pa.table({"id": ["a"]}), copy / "train-extra-00000.parquet")
    (copy / "train-00004.parquet").touch()
    problems = "\n".join(checking.check(copy).problems)
    assert "train-00001.parquet: cannot be read" in problems
    assert "train-00003.parquet: not readable as Parquet" in problems
    assert "train-extra-00000.parquet: not readable as Parquet: its columns are not those of a shard" in problems
    assert "train-00004.parquet: not in the manifest" in problems
    assert "the manifest's pixels per class are not those of the labels" in problems


PNG = writing.encode_label(np.full((HEIGHT, WIDTH), 12, dtype=np.uint8))
COLOURS = writing.encode_jpeg(Image.new("RGB", (WIDTH, HEIGHT)))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"id": "../../up"}, "looks like a path that leads elsewhere"),
        ({"id": "train_003"}, "the id 'train_003' occurs 2 times"),
        ({"width": WIDTH + 1}, "the image is JPEG RGB"),
        ({"image": b"no image"}, "cannot identify image file"),
        ({"image": PNG}, "expected JPEG or PNG RGB"),
        ({"label": PNG}, "the ids [12], outside the taxonomy's 11 classes"),
        ({"label": COLOURS}, "expected PNG L"),
        ({"label": encode(SPLITS["train"][1])["label"]}, "pixels per class are not those of the labels"),
    ],
)
def test_check_finds_forged_rows(copy: Path, values: dict, problem: str) -> None:
    replace_first_row(copy, **values)
    assert problem in "\n".join(checking.check(copy).problems)


def test_report_shows_shares(dataset: Path) -> None:
    report = checking.format_report(checking.check(dataset))
    assert "train: 40 images, 32 labelled, 4 shards" in report
    assert "traffic sign" in report
    assert report.endswith("no problem found")
