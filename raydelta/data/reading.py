"""Reading one image and its label: decoding, checking, cropping and resizing both alike.

Data sets store class values in different ways. There is a function for each (``read_ids``, …), all with the same
signature.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raydelta.data.decoding import STORED, UndecodableError, decoding, open_picture
from raydelta.data.shards import BadItem, Item, StoredRow
from raydelta.data.tables import Table, tables_that_hold
from raydelta.data.taxonomy import IGNORE
from raydelta.data.writing import encode_jpeg, encode_label
from raydelta.errors import UserError
from raydelta.storage.files import read_bytes, without_secrets

EXIF_ORIENTATION = 0x0112
EIGHT_BIT = {"RGB", "L", "P", "RGBA", "LA", "CMYK"}  # Pillow's modes of images that become RGB
NOT_IDS = {
    "I;16": "a 16-bit picture",
    "I;16B": "a 16-bit picture",
    "I": "a picture of more than 8 bits",
    "RGB": "a colour picture",
    "RGBA": "a colour picture with transparency",
    "1": "a 1-bit picture",
}
PNG_BIT_DEPTH = 24  # its place in the file
STRAY = 0.001  # share of a label that may have colours nobody knows
GREY_STEP = {2: 85, 4: 17}  # bits of a grey PNG → what Pillow multiplies its values with

Box = tuple[int, int, int, int]
ReadLabel = Callable[[str, bytes, Image.Image, Table], NDArray[np.unsignedinteger]]
"""(file, its bytes, the picture, the table) → values, [H, W]."""


def encode_pair(
    item: Item,
    *,
    table: Table,
    ids: Mapping[int, int],
    read_label: ReadLabel,
    size: tuple[int, int] | None,
    crop: Box | None,
) -> StoredRow:
    """Read an image and its label, check both, crop and resize them alike.

    Args:
        ids: value in the label files → taxonomy id or 255; any other value is an error.
        size: (width, height) to resize to, images smoothly and labels to the nearest pixel.
        crop: (left, top, right, bottom) in pixels of the source, cut out before resizing.

    Raises:
        BadItem: one of the files breaks a rule.
    """
    original, data = read_image(item.image)
    image = _shape(original, item.image, size, crop, Image.Resampling.BILINEAR)
    label = None
    if item.label is not None:
        mask = _read_mask(item.label, table, ids, read_label)
        if mask.size != original.size:
            raise BadItem(
                item.label,
                f"the label has {mask.width}×{mask.height} pixels, its image {original.width}×{original.height}",
            )
        label = encode_label(np.asarray(_shape(mask, item.label, size, crop, Image.Resampling.NEAREST)))
    return StoredRow(
        id=item.id,
        sequence=item.sequence,
        image=data if data is not None and image is original else encode_jpeg(image),
        label=label,
        height=image.height,
        width=image.width,
    )


def read_ids(file: str, data: bytes, image: Image.Image, table: Table) -> NDArray[np.unsignedinteger]:
    """8-bit single-channel ids; a palette image counts by its indices, not its colours."""
    if image.mode not in ("L", "P"):
        found = NOT_IDS.get(image.mode, f"an image of Pillow's mode {image.mode}")
        hint = ""
        if _is_deep(data) and image.mode in ("RGB", "RGBA"):
            found, hint = "a 16-bit colour picture", "; SYNTHIA's are read by --kind synthia-rand or synthia-seqs"
        elif image.mode in ("RGB", "RGBA"):
            pixels = np.asarray(image)
            if not pixels[..., 1:3].any():
                hint = "; only its red channel is used, as in CARLA's: --kind carla reads those"
        raise BadItem(file, f"the label is {found}; expected 8-bit single-channel class ids{hint}")
    values = np.asarray(image)
    if image.mode == "P":
        colours = np.array(image.getpalette(), dtype=np.int64).reshape(-1, 3)
        used = np.unique(values)
        used = used[used < len(colours)]
        if (colours[used] == colours[used, :1]).all() and (colours[used, 0] != used).any():
            raise BadItem(
                file, "the label is a grey picture with a palette: are the grey values its ids, or the indices?"
            )
    elif data[:4] == b"\x89PNG" and data[PNG_BIT_DEPTH] in GREY_STEP:
        values = values // GREY_STEP[data[PNG_BIT_DEPTH]]
    return values


def read_first_channel(file: str, data: bytes, image: Image.Image, table: Table) -> NDArray[np.unsignedinteger]:
    """SYNTHIA's: the class in the first channel, the instance in the second, 16 bits each; or plain 8-bit ids."""
    if image.mode in ("L", "P"):
        return np.asarray(image)
    if image.mode == "I;16":
        return np.asarray(image).astype(np.uint16)
    if image.mode not in ("RGB", "RGBA"):
        raise BadItem(file, f"the label has Pillow's mode {image.mode}; expected 16-bit RGB with the class in red")
    if _is_deep(data):
        # Pillow keeps the high byte of each, and that is zero.
        import kornia_rs

        shape = image.size[1], image.size[0]
        try:
            channels = np.asarray(kornia_rs.io.decode_image_png_u16(data, shape, image.mode.lower()))
        except Exception as error:  # it knows no other
            raise ValueError(str(error)) from error
    else:
        channels = np.asarray(image)
    if channels[..., 2].any():
        raise BadItem(file, "the label is a colour picture (blue is in use): offer the folder GT/LABELS, not GT/COLOR")
    return channels[..., 0]


def read_red_or_colours(file: str, data: bytes, image: Image.Image, table: Table) -> NDArray[np.unsignedinteger]:
    """CARLA's: the class in the red channel, or the colours that its converter paints; transparency is ignored."""
    if image.mode in ("L", "P"):
        return np.asarray(image)
    if image.mode not in ("RGB", "RGBA") or _is_deep(data):
        raise BadItem(file, f"the label has Pillow's mode {image.mode}; expected 8-bit RGB with the class in red")
    channels = np.asarray(image)[..., :3]
    if not channels[..., 1:].any():
        return channels[..., 0]
    packed = channels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    return _values_of(file, packed, table)


def read_colours(file: str, data: bytes, image: Image.Image, table: Table) -> NDArray[np.unsignedinteger]:
    """Colours of a palette that the user has written down; transparency is ignored."""
    if _is_deep(data) or image.mode not in ("RGB", "RGBA", "P", "L"):
        raise BadItem(file, f"the label has Pillow's mode {image.mode}; expected 8-bit colours")
    channels = np.asarray(image.convert("RGB"))
    return _values_of(file, channels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32), table)


def _values_of(file: str, packed: NDArray[np.uint32], table: Table) -> NDArray[np.uint16]:
    """Colours (red, green and blue in one number) → values of the table; a few pixels of unknown ones are void."""
    known = {(r << 16) + (g << 8) + b: value for value, colours in table.colours.items() for r, g, b in colours}
    found, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    strange = {int(colour): count for colour, count in zip(found, counts, strict=True) if int(colour) not in known}
    names = [f"#{colour:06x}" for colour in sorted(strange)]
    if sum(strange.values()) > STRAY * packed.size or (strange and table.void is None):
        shown = ", ".join(f"{name} {tuple(bytes.fromhex(name[1:]))}" for name in names[:5])
        raise BadItem(
            file,
            f"the label has {len(names)} colours that are not in its palette: {shown}; an --ids file says what they "
            f"mean: '\"{names[0]}\": other'",
        )
    for name in names:
        warnings.warn(f"labels: the colour {name} is not in the palette; its few pixels are void", stacklevel=2)
    values = np.array([known.get(int(colour), table.void or 0) for colour in found], dtype=np.uint16)
    return values[places].reshape(packed.shape)


def _is_deep(data: bytes) -> bool:
    """Whether a PNG has 16 bits per channel."""
    return data[:4] == b"\x89PNG" and data[PNG_BIT_DEPTH] == 16


def read_image(file: str) -> tuple[Image.Image, bytes | None]:
    """The RGB image, upright, and its bytes where a shard can take them as they are."""
    image, data = _open(file)
    with _decoding(file):
        image.load()
    if image.mode not in EIGHT_BIT or _is_deep(data):
        raise BadItem(file, f"the image has Pillow's mode {image.mode}; expected 8 bits per channel")
    with _decoding(file):
        upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
    if image.format in STORED and image.mode == "RGB" and upright:
        return image, data
    with _decoding(file):
        return ImageOps.exif_transpose(image).convert("RGB"), None


def _read_mask(file: str, table: Table, ids: Mapping[int, int], read_label: ReadLabel) -> Image.Image:
    """The mask of taxonomy ids, mode L."""
    image, data = _open(file)
    if image.format == "JPEG":
        raise BadItem(file, "the label is a JPEG, which is lossy; expected a PNG of ids (are the folders swapped?)")
    with _decoding(file):
        values = read_label(file, data, image, table)
    counts = np.bincount(values.ravel())
    present = set(np.flatnonzero(counts).tolist())
    unknown = sorted(present - ids.keys())
    if unknown:
        what = "palette indices" if image.mode == "P" else "ids"
        fitting = tables_that_hold(present)
        hint = f"; all of its values are in: {', '.join(fitting)} (see --kind and --ids)" if fitting else ""
        shown = unknown if len(unknown) <= 10 else [*unknown[:10], "…"]
        raise BadItem(file, f"the label has the {what} {shown}, which are not in the table ({_ranges(ids)}){hint}")
    lookup = np.full(len(counts), IGNORE, dtype=np.uint8)
    for value in present:
        lookup[value] = ids[value]
    return Image.fromarray(lookup[values])


def _open(file: str) -> tuple[Image.Image, bytes]:
    """The picture, not decoded yet, and the bytes of the file."""
    try:
        data = read_bytes(file)
    except UserError as error:
        raise BadItem(file, str(error).removeprefix(f"{without_secrets(file)}: ")) from error
    except PermissionError as error:
        raise BadItem(file, f"cannot be read: {error.strerror or error}") from error
    except OSError as error:  # it was listed a moment ago: not the sample's fault
        where = "the source has to lie on storage that all machines share"
        raise UserError(
            f"{without_secrets(file)}: cannot be read any more: {error.strerror or error}; {where}"
        ) from error
    if not data:
        raise BadItem(file, "the file is empty (0 bytes)")
    with _decoding(file):
        return open_picture(data), data


@contextmanager
def _decoding(file: str) -> Iterator[None]:
    try:
        with decoding():
            yield
    except UndecodableError as error:
        raise BadItem(file, f"cannot be decoded: {error}") from error


def _shape(
    image: Image.Image, file: str, size: tuple[int, int] | None, crop: Box | None, method: Image.Resampling
) -> Image.Image:
    if crop is not None:
        if crop[2] > image.width or crop[3] > image.height:
            raise BadItem(file, f"has {image.width}×{image.height} pixels, the crop {crop} reaches beyond")
        image = image.crop(crop)
    return image if size is None or image.size == size else image.resize(size, method)


def _ranges(ids: Iterable[int]) -> str:
    """``[0, 1, 2, 255]`` → ``0-2, 255``."""
    values = sorted(ids)
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
