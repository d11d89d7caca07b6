"""Images that were made to break a decoder: mutations of good ones, and some that somebody would make on purpose."""

import io
import random
import struct
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from raydelta.data.decoding import decode
from raydelta.data.formats import FORMATS
from raydelta.data.reading import encode_pair
from raydelta.data.shards import Item
from raydelta.data.tables import read_table
from raydelta.data.taxonomy import CAMVID11
from raydelta.errors import UserError

SIZE = (32, 16)
KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MODES = ("RGB", "L", "P")


def picture(kind: str, mode: str = "RGB", scale: int = 20) -> bytes:
    """A small image of class ids times ``scale``."""
    pixels = np.random.default_rng(0).integers(0, 11, (SIZE[1], SIZE[0]), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    Image.fromarray(pixels * np.uint8(scale)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def mutate(original: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, put in or cut out; most near the beginning or the end, where what steers a reader is."""
    content = bytearray(original)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        size = len(content)
        place = chance.choice([chance.randrange(size + 1)] * 3 + [chance.randrange(65), size - chance.randrange(1, 65)])
        place = min(max(0, place), max(0, size - 1))
        match chance.randrange(5):
            case 0 | 1 if content:
                content[place] = chance.randrange(256)
            case 2:
                content[place:place] = chance.randbytes(chance.randint(1, 8))
            case 3:
                del content[place : place + chance.randint(1, 16)]
            case _ if chance.random() < 0.1:
                del content[place:]
    return bytes(content)


def decode_mutated(count: int) -> dict[str, int]:
    """Mutated images through every reader of images and labels: how many were read, refused, and what came uncaught."""
    chance, outcomes = random.Random(0), Counter({"read": 0, "refused": 0, "uncaught": 0})
    photographs = [picture(kind) for kind in KINDS]
    labels = [picture("PNG", mode, 1) for mode in MODES]
    with tempfile.TemporaryDirectory(prefix="raydelta-images-") as folder:
        photo, label = Path(folder) / "photo.jpg", Path(folder) / "label.png"
        good = picture("JPEG")
        for number in range(count):
            as_label = number % 3 == 2
            content = mutate(chance.choice(labels if as_label else photographs), chance)
            photo.write_bytes(good if as_label else content)
            label.write_bytes(content)
            outcome = "read"
            try:
                _read(photo, label if as_label else None, ("folder", "carla", "synthia-rand")[number // 3 % 3])
                if not as_label:
                    decode({"id": ["a"], "image": [content]}, SIZE, with_labels=False, num_classes=len(CAMVID11))
            except UserError:
                outcome = "refused"
            except BaseException as error:
                outcome = "uncaught"
                print(f"uncaught in image {number}: {error!r}", flush=True)
            outcomes[outcome] += 1
    return dict(outcomes)


def _read(image: Path, label: Path | None, kind: str) -> object:
    form = FORMATS[kind]
    table = read_table(form.table or "camvid")
    item = Item("a", "b", str(image), None if label is None else str(label))
    return encode_pair(item, table=table, ids=table.to(CAMVID11), read_label=form.read_label, size=None, crop=None)


def png(width: int, height: int) -> bytes:
    """A black PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def hostile_images() -> dict[str, bytes]:
    """Name → content, made on purpose."""
    good = {kind: picture(kind) for kind in KINDS}
    found = {
        f"{kind} cut at {share}": good[kind][: len(good[kind]) * share // 10] for kind in KINDS for share in (1, 5, 9)
    }
    found |= {
        f"a PNG of {width}x{height}": png(width, height) for width, height in ((60_000, 60_000), (1, 2**31 - 1), (0, 0))
    }
    found |= {"empty": b"", "zeros": bytes(1000), "text": b"not an image", "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
    found |= {"svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "pickle": b"\x80\x04\x95\x00cos\nsystem\n."}
    found |= {"a gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00", "two in one": good["JPEG"] + good["PNG"]}
    return found


def list_hostile_images(folder: Path) -> list[str]:
    """Write a folder in the plain layout whose photographs and masks are hostile; their names."""
    names = []
    for split in ("images/train", "labels/train"):
        (folder / split).mkdir(parents=True)
    (folder / "ids.yaml").write_text("ids: {0: road, 1: sky}\n")
    good = picture("PNG", "L")
    label = io.BytesIO()
    Image.fromarray(np.zeros((SIZE[1], SIZE[0]), np.uint8)).save(label, "PNG")
    for number, (name, content) in enumerate(hostile_images().items()):
        for part in ("image", "mask"):
            stem = f"{part}_{number:03}.png"
            (folder / "images/train" / stem).write_bytes(content if part == "image" else good)
            (folder / "labels/train" / stem).write_bytes(content if part == "mask" else label.getvalue())
            names.append(f"{name} as {part}")
    (folder / "images/train" / "good_000.png").write_bytes(good)
    (folder / "labels/train" / "good_000.png").write_bytes(label.getvalue())
    return names
