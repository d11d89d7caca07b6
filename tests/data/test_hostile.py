"""Files that were made to break their reader: only ``UserError`` comes out, soon and in little memory.

``HYPOTHESIS_PROFILE=long`` tries many more mutations, as the scheduled job does (scheduled.yml).
"""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from raydelta.config import load_config
from raydelta.data import checking, shards
from raydelta.data.decoding import MAX_PIXELS, UndecodableError, decode, open_picture
from raydelta.data.formats import FORMATS
from raydelta.data.listing import list_pictures
from raydelta.data.reading import encode_pair
from raydelta.data.shards import BadItem, Item
from raydelta.data.streams import load_images
from raydelta.data.tables import read_table
from raydelta.data.taxonomy import CAMVID11, get_taxonomy
from raydelta.errors import UserError, printable
from tests.hostile import VALUES, mutated, only_user_errors, replaced
from tests.sets import REAL_NAMES, write_set

SIZE = (32, 16)
PIXELS = np.random.default_rng(0).integers(0, 11, (SIZE[1], SIZE[0]), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hostile") / "set"
    write_set(target, "street", REAL_NAMES[:4])
    shutil.copy(target / "train-00000.parquet", target / "test-00000.parquet")
    return target


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def readers(uri: Path) -> list[Callable[[], object]]:
    """Everything that opens a data set."""
    return [
        lambda: shards.data_fingerprint(uri),
        lambda: shards.list_ids(uri, "train"),
        lambda: shards.read_rows(uri, "train"),
        lambda: load_images(str(uri), "train", SIZE),
        lambda: checking.format_report(checking.check(uri)),
    ]


@given(data=st.data())
def test_a_manifest(copy: Path, data: st.DataObject) -> None:
    text = (copy.parent / "original.json").read_text() if (copy.parent / "original.json").exists() else None
    if text is None:
        text = (copy / "manifest.json").read_text()
        (copy.parent / "original.json").write_text(text)
    if data.draw(st.booleans()):
        content = json.dumps(replaced(json.loads(text), data.draw)).encode()
    else:
        content = data.draw(mutated(text.encode()))
    (copy / "manifest.json").write_bytes(content)
    only_user_errors(*readers(copy))


@given(data=st.data())
def test_a_shard(dataset: Path, copy: Path, data: st.DataObject) -> None:
    original = (dataset / "train-00000.parquet").read_bytes()
    (copy / "train-00000.parquet").write_bytes(data.draw(mutated(original)))
    only_user_errors(*readers(copy))


def picture(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(PIXELS * 20).convert(mode)
    options: dict[str, Any] = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_an_image(tmp_path: Path, kind: str) -> None:
    original = picture(kind)

    @given(content=mutated(original))
    @example(content=original)
    def run(content: bytes) -> None:
        path = tmp_path / "photo.jpg"
        path.write_bytes(content)
        only_user_errors(lambda: read_pair(path, None))
        only_user_errors(lambda: decode({"id": ["a"], "image": [content]}, SIZE, with_labels=False, num_classes=11))

    run()


@pytest.mark.parametrize("kind", ["folder", "carla", "synthia-rand"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_label(tmp_path: Path, mode: str, kind: str) -> None:
    original = picture("PNG", mode)
    (tmp_path / "photo.jpg").write_bytes(picture("JPEG"))

    @given(content=mutated(original))
    @example(content=original)
    def run(content: bytes) -> None:
        (tmp_path / "label.png").write_bytes(content)
        only_user_errors(lambda: read_pair(tmp_path / "photo.jpg", tmp_path / "label.png", kind))

    run()


def read_pair(image: Path, label: Path | None, kind: str = "folder") -> object:
    form = FORMATS[kind]
    table = read_table(form.table or "camvid")
    item = Item("a", "b", str(image), None if label is None else str(label))
    return encode_pair(item, table=table, ids=table.to(CAMVID11), read_label=form.read_label, size=None, crop=None)


YAML_TEXTS = st.one_of(
    st.text(max_size=200),
    VALUES.map(lambda value: json.dumps(value)),
    st.lists(
        st.sampled_from(
            [
                *("name: x", "classes: [a, b]", "classes: {a: [1, 2, 3]}", "palette: [[0, 0, 0]]", "also: {a: [b]}"),
                *("&a [*a]", "ids: {0: road}", "0: road", "colours: {0: [[1, 2, 3]]}", "shares: {road: .inf}"),
                *("train: [a, b]", "validation: [c]", "- a", "? [x]: y", "!!python/object:os.system {}", "<<: *b"),
                *("\t", "1" * 5000, "~: 1", "2001-01-01: a"),
            ]
        ),
        max_size=5,
    ).map("\n".join),
)


@given(text=YAML_TEXTS)
def test_a_taxonomy_an_id_table_and_a_labels_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    only_user_errors(
        lambda: get_taxonomy(str(path)),
        lambda: read_table(str(path)),
        lambda: load_config(overrides={"labels.ids": str(path)}),
    )


# One by one: what somebody would do on purpose.

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(9)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, "&a [*a]", "[" * 1_000_000, "{a: " * 2000, f"name: {'9' * 5000}", f"{'9' * 5000}: x", "\x00", "ids: \xff"],
)
def test_yaml_that_stands_for_too_much(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text, encoding="latin-1")
    for read in (get_taxonomy, read_table, lambda file: load_config(overrides={"labels.ids": file})):
        with pytest.raises(UserError, match=r"bomb\.yaml"):
            read(str(path))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 1000 + "1" + "}" * 1000, f'{{"format": {"9" * 5000}}}', "[]", "7", "null", '"\ud800"'],
)
def test_manifests_that_are_none(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text, errors="surrogatepass")
    with pytest.raises(UserError, match=r"copy: manifest\.json is damaged"):
        shards.read_manifest(copy)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/etc/passwd", "a/b", "..", "", "a\\b", "x" * 300, "a\x1b[2Jb", "a\n"]
)
@pytest.mark.parametrize("field", ["name", "split", "shard"])
def test_names_that_lead_elsewhere_are_refused_where_the_manifest_is_read(copy: Path, field: str, name: str) -> None:
    tree = json.loads((copy / "manifest.json").read_text())
    if field == "name":
        tree["name"] = name
    elif field == "split":
        tree["splits"] = {name: tree["splits"]["train"]}
    else:
        tree["splits"]["train"]["shards"][0]["file"] = f"{name}-00000.parquet" if name else name
    (copy / "manifest.json").write_text(json.dumps(tree))
    if (field, name) == ("shard", "x" * 300):
        return  # no such file, and no harm
    with pytest.raises(UserError, match="is damaged"):
        shards.read_manifest(copy)


def test_pictures_of_a_data_set_stay_in_their_folder(copy: Path, tmp_path: Path) -> None:
    from raydelta.results.pictures import show_dataset

    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(
        text.replace('"name":"copy"', '"name":"set"').replace('"set"', '"../escaped"', 1)
    )
    with pytest.raises(UserError, match="plain file name"):
        show_dataset(str(copy), tmp_path / "out", 2)
    assert not list(tmp_path.glob("*escaped*"))


def test_a_shard_without_a_footer(copy: Path) -> None:
    table = pq.read_table(copy / "train-00000.parquet")
    pq.write_table(table.replace_schema_metadata(None), copy / "train-00000.parquet")
    with pytest.raises(UserError, match=r"train-00000\.parquet: .*its footer"):
        shards.list_ids(copy, "train")
    assert "its footer has no record" in "\n".join(checking.check(copy).problems)


def test_a_shard_of_more_rows_than_the_manifest_says(copy: Path) -> None:
    table = pq.read_table(copy / "train-00000.parquet")
    pq.write_table(pa.concat_tables([table] * 2), copy / "train-00000.parquet")
    with pytest.raises(UserError, match="it has 8 rows, 4 in the manifest"):
        shards.read_rows(copy, "train")


# Not ru_maxrss: a process inherits that from the one that has started it.
PEAK = "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024)"


def peak_of(code: str, *arguments: str) -> tuple[int, str]:
    """MiB that a process took at most, and what it has printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{PEAK}", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.strip().splitlines()
    return int(peak), "\n".join(said)


@pytest.mark.parametrize(("column", "compression"), [("image", "none"), ("image", "zstd"), ("id", "snappy")])
def test_a_small_shard_that_stands_for_gigabytes(copy: Path, column: str, compression: str) -> None:
    rows, value = 6000, b"x" * 1_000_000 if column == "image" else "x" * 1_000_000
    table = pq.read_table(copy / "train-00000.parquet").take(pa.array([0] * rows))
    index = table.schema.get_field_index(column)
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    table = table.set_column(index, pa.field(column, dictionary.type, nullable=False), dictionary)
    path = copy / "train-00000.parquet"
    pq.write_table(table, path, compression=compression, store_schema=False, row_group_size=rows)
    footer = pq.read_metadata(copy / "test-00000.parquet").metadata
    assert path.stat().st_size < 10 * 2**20, footer
    text = json.loads((copy / "manifest.json").read_text())
    text["splits"]["train"]["shards"][0]["rows"] = rows
    (copy / "manifest.json").write_text(json.dumps(text))
    code = """
import sys
from raydelta.data import checking, shards
from raydelta.data.streams import load_images
from raydelta.errors import UserError
for read in (
    lambda: load_images(sys.argv[1], "train", (32, 16)),
    lambda: shards.list_ids(sys.argv[1], "train"),
    lambda: checking.check(sys.argv[1]),
    lambda: next(iter(shards.read_groups(sys.argv[1] + "/train-00000.parquet", ["id", "image"]))),
):
    try:
        read()
    except UserError:
        pass
"""
    peak, _ = peak_of(code, str(copy))
    assert peak < 1200, f"{peak} MiB"


def png(width: int, height: int) -> bytes:
    """A black PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header says it has so many pixels."""
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize(
    "content", [png(60_000, 60_000), png(13_000, 10_000), jpeg(65_000, 65_000), jpeg(13_000, 10_000)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_stand_for_gigabytes(tmp_path: Path, content: bytes) -> None:
    assert MAX_PIXELS < 13_000 * 10_000
    (tmp_path / "bomb.jpg").write_bytes(content)
    with pytest.raises(BadItem, match=r"bomb\.jpg: cannot be decoded: .*pixels"):
        read_pair(tmp_path / "bomb.jpg", None)
    with pytest.raises(UserError, match=r"row 'a' cannot be decoded: .*pixels"):
        decode({"id": ["a"], "image": [content]}, SIZE, with_labels=False, num_classes=11)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PPM", "TGA", "ICO", "PCX", "DDS"])
def test_formats_that_nobody_photographs_in_are_not_even_tried(kind: str) -> None:
    with pytest.raises(UndecodableError, match="cannot identify"):
        open_picture(picture(kind))


@pytest.mark.parametrize("palette", [b"", b"\x01", bytes(range(256)) * 4])
def test_hostile_palettes(tmp_path: Path, palette: bytes) -> None:
    content = picture("PNG", "P")
    start = content.index(b"PLTE") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    chunk = struct.pack(">I", len(palette)) + b"PLTE" + palette
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    (tmp_path / "label.png").write_bytes(content[:start] + chunk + content[end:])
    (tmp_path / "photo.jpg").write_bytes(picture("JPEG"))
    only_user_errors(lambda: read_pair(tmp_path / "photo.jpg", tmp_path / "label.png"))


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images/pipe.jpg")
    (tmp_path / "images/zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "file.yaml")
    listing = list_pictures(tmp_path)
    assert listing.files == []
    assert {Path(bad.file).name: bad.rule for bad in listing.links}["pipe.jpg"] == "a pipe or device, not a file"
    for path in (tmp_path / "images/pipe.jpg", Path("/dev/zero")):
        with pytest.raises(BadItem, match="a pipe or device, not a file"):
            read_pair(path, None)
    for file in (str(tmp_path / "file.yaml"), "/dev/zero"):
        for read in (get_taxonomy, read_table, lambda name: load_config(overrides={"labels.ids": name})):
            with pytest.raises(UserError):
                read(file)


def test_what_a_manifest_says_does_not_command_the_terminal(copy: Path) -> None:
    tree = json.loads((copy / "manifest.json").read_text())
    tree["source"] = "\x1b]0;owned\x07"
    tree["skipped"] = [{"file": "\x1b[2J", "rule": "\x1b[31m"}]
    (copy / "manifest.json").write_text(json.dumps(tree))
    assert "\x1b" not in checking.format_report(checking.check(copy))
    assert printable("a\x1bb\nc\u202e") == "a\\x1bb\nc\\u202e"
    tree["taxonomy"]["classes"][0] = "\x1b[2J"
    (copy / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="not printable"):
        shards.read_manifest(copy)


def test_unfinished_shards_follow_no_links(tmp_path: Path) -> None:
    from raydelta.data import writing

    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "set.partial"
    folder.mkdir()
    (folder / f"train-00000.parquet.{os.getpid()}").symlink_to(victim)
    task = writing._make_task("train-00000.parquet", [], {})
    path = folder / "train-00000.parquet.link"
    path.symlink_to(victim)
    with pytest.raises(FileExistsError):
        writing._write_rows(path, task, lambda item: None, 11, skip_bad=False)  # type: ignore[arg-type, return-value]
    assert victim.read_text() == "precious"
