"""Encoded pictures → arrays: only the formats that photographs and masks come in, and within bounds.

A file may have been made to break the decoder or to fill the memory, so everything that opens a picture does it with
``open_picture`` and within ``decoding``.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from raydelta.data.taxonomy import IGNORE
from raydelta.errors import UserError

PICTURES = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # Pillow knows many more, one of which starts Ghostscript
STORED = ("JPEG", "PNG")  # in shards
MAX_PIXELS = 128_000_000  # of one picture

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class UndecodableError(ValueError):
    """A picture that cannot be decoded, and why."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into ``UndecodableError``: on a damaged file that can be any exception."""
    try:
        yield
    except (UserError, UndecodableError):
        raise
    except Exception as error:
        # Pillow names the buffer, at an address that differs every time.
        reason = str(error).split(" <_io.")[0].splitlines()
        raise UndecodableError(reason[0] if reason else type(error).__name__) from error


def open_picture(data: bytes, formats: tuple[str, ...] = PICTURES) -> Image.Image:
    """A picture whose pixels are not decoded yet; decode them within ``decoding``.

    Raises:
        UndecodableError: none of these formats, damaged, or more than ``MAX_PIXELS`` pixels.
    """
    with decoding():
        picture = Image.open(io.BytesIO(data), formats=formats)
    if picture.width * picture.height > MAX_PIXELS:
        millions = MAX_PIXELS // 10**6
        raise UndecodableError(f"it has {picture.width}×{picture.height} pixels, more than {millions} million")
    return picture


def load_picture(data: bytes, formats: tuple[str, ...] = PICTURES) -> Image.Image:
    """A picture with its pixels.

    Raises:
        UndecodableError: as ``open_picture``, or its pixels are damaged.
    """
    picture = open_picture(data, formats)
    with decoding():
        picture.load()
    return picture


def decode(
    rows: pa.Table | Mapping[str, Iterable[Any]],
    size: tuple[int, int] | None,
    with_labels: bool,
    num_classes: int,
    threads: int | None = None,
) -> dict[str, Any]:
    """Rows → ``id`` (list), ``image`` uint8 [N, 3, H, W] and, if asked for, ``label`` uint8 [N, H, W].

    Args:
        rows: a table, or a batch of Ray Data, with the columns id, image and (``with_labels``) label.
        size: (width, height) to resize to, images smoothly and labels to the nearest pixel; None leaves them as they
            are, which takes rows of one size.
        with_labels: a row without a label has 255 all over.
        threads: default: one for each CPU that this process may use.

    Raises:
        UserError: a row cannot be decoded, has ids outside 0..num_classes-1 and 255, or differs in size.
    """
    ids, images = _column(rows, "id"), _column(rows, "image")
    labels = _column(rows, "label") if with_labels else []
    if size is None and not ids:
        raise UserError("no rows to decode, and no size given")
    with _row(ids[0] if ids else ""):
        shape = size or open_picture(images[0], STORED).size
    pixels = np.empty((len(ids), 3, shape[1], shape[0]), dtype=np.uint8)
    masks = np.full((len(labels), shape[1], shape[0]), IGNORE, dtype=np.uint8)

    def fill(index: int) -> None:
        with _row(ids[index]):
            image = open_picture(images[index], STORED)
            if size is None and image.size != shape:
                raise ValueError(f"its size is {image.size}, the first one's {shape}: give a size")
            image.draft("RGB", shape)  # JPEG only: decodes at 1/2, 1/4 or 1/8 where that is still large enough
            pixels[index] = np.asarray(_resize(image, shape, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            if with_labels and labels[index] is not None:
                label = open_picture(labels[index], STORED)
                masks[index] = np.asarray(_resize(label, shape, Image.Resampling.NEAREST))
                outside = np.unique(masks[index][(masks[index] >= num_classes) & (masks[index] != IGNORE)])
                if len(outside):
                    raise ValueError(f"its label has the ids {outside.tolist()}, and there are {num_classes} classes")

    threaded(fill, range(len(ids)), threads)
    decoded: dict[str, Any] = {"id": ids, "image": pixels}
    return decoded | {"label": masks} if with_labels else decoded


def decode_label(encoded: bytes) -> NDArray[np.uint8]:
    """The ids of a stored label, [H, W].

    Raises:
        UndecodableError: it is damaged.
    """
    with decoding():
        return np.asarray(open_picture(encoded, STORED))


def threaded(
    function: Callable[[Argument], Result], arguments: Sequence[Argument], threads: int | None = None
) -> list[Result]:
    """Map in threads: decoding, hashing and waiting for storage all leave the interpreter free."""
    threads = min(threads or usable_cpus(), len(arguments))
    if threads <= 1:
        return [function(argument) for argument in arguments]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, arguments))


def usable_cpus() -> int:
    """How many CPUs this process may use: those that its Ray task has reserved, or those it may run on.

    Not OMP_NUM_THREADS: ``ray up`` sets that to 1 for every command.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.worker.mode == ray.WORKER_MODE:
            return max(1, int(context.get_assigned_resources().get("CPU", 1)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resize(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, method)


@contextmanager
def _row(identifier: str) -> Iterator[None]:
    try:
        with decoding():
            yield
    except UndecodableError as error:
        raise UserError(f"row {identifier!r} cannot be decoded: {error}") from error


def _column(rows: pa.Table | Mapping[str, Iterable[Any]], name: str) -> list[Any]:
    column = rows[name]
    return column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)
