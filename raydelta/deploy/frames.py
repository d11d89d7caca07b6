"""Photographs and videos in, pictures of masks out: the stages of ``raydelta predict`` on both sides of the networks.

They run in processes of their own, so nothing here imports torch.
"""

import errno
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from raydelta.data.reading import read_image
from raydelta.data.shards import BadItem
from raydelta.data.taxonomy import Taxonomy
from raydelta.deploy.inputs import Input, read_frames
from raydelta.errors import UserError
from raydelta.results.pictures import Pixels, colourise, overlay
from raydelta.storage.files import without_secrets, write_atomically

KINDS = ("ids", "colour", "overlay")
SOFTWARE = "raydelta"  # what our PNGs say they are made by
NAME_ERRORS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EILSEQ, errno.EINVAL}
"""What the file system has against one name; anything else concerns all files."""


@dataclass(frozen=True)
class Task:
    """What every stage has to know."""

    run: Path
    method: str | None
    out: Path | None  # None: beside the photographs
    kinds: tuple[str, ...]
    taxonomy: Taxonomy  # of the model
    values: tuple[int, ...]  # written for each of its ids
    window: tuple[int, int] | None
    batch: int

    def files(self, name: str) -> list[Path]:
        """The pictures of an input, one for each kind."""
        if self.out is None:
            return [Path(f"{name}-{kind}.png") for kind in self.kinds]
        return [self.out / kind / f"{name}.png" for kind in self.kinds]

    def is_done(self, name: str) -> bool:
        """Whether all of its pictures are there."""
        return self.out is not None and all(path.exists() for path in self.files(name))


class Frame(TypedDict):
    """A photograph or the frame of a video on its way through the stages; Ray Data carries it as a row."""

    name: str
    file: str
    image: bytes  # uint8 RGB, height × width × 3; empty: nothing to predict
    mask: bytes  # uint8 ids, height × width, once predicted
    height: int
    width: int
    last: bool  # of its input
    reason: str  # why it is skipped


def read_frames_of(item: Input, task: Task) -> Iterator[Frame]:
    """The frames of an input that have no masks yet; the last row says that it is the last, and why it was skipped."""
    reason, file = "", without_secrets(item.address)
    try:
        if not item.is_video:
            yield _frame(item.name, file, np.asarray(read_image(item.address)[0]), last=True)
            return
        for number, image in enumerate(read_frames(item.address), 1):
            name = f"{item.name}/{number:06}"
            if not task.is_done(name):
                yield _frame(name, file, image)
    except UserError as error:
        reason = error.rule if isinstance(error, BadItem) else str(error)
    yield _frame(item.name, file, last=True, reason=reason)


def read_row(row: dict[str, str], task: Task) -> Iterator[Frame]:
    """``read_frames_of`` for an input that is a row of Ray Data."""
    return read_frames_of(Input(**row), task)


def _frame(name: str, file: str, image: Pixels | None = None, last: bool = False, reason: str = "") -> Frame:
    height, width = image.shape[:2] if image is not None else (0, 0)
    pixels = image.tobytes() if image is not None else b""
    return Frame(name=name, file=file, image=pixels, mask=b"", height=height, width=width, last=last, reason=reason)


def write_frame(frame: Frame, task: Task) -> Frame:
    """Write the pictures of a frame; returned without its pixels.

    Raises:
        UserError: nothing can be written there; what concerns this name alone is a reason to skip it.
    """
    reason, done = frame["reason"], b""
    if frame["mask"]:
        shape = frame["height"], frame["width"]
        mask = np.frombuffer(frame["mask"], np.uint8).reshape(shape)
        try:
            for kind, path in zip(task.kinds, task.files(frame["name"]), strict=True):
                if kind == "ids":
                    picture = np.array(task.values, dtype=np.uint8)[mask]
                elif kind == "colour":
                    picture = colourise(mask, task.taxonomy)
                else:
                    picture = overlay(np.frombuffer(frame["image"], np.uint8).reshape(*shape, 3), mask, task.taxonomy)
                write_atomically(path, encode_picture(picture))
            done = b"1"
        except UserError as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno in NAME_ERRORS):
                raise
            reason = str(error)
    return frame | {"image": b"", "mask": done, "reason": reason}


def encode_picture(picture: Pixels, suffix: str = ".png") -> bytes:
    """A picture as a file of the format that the suffix stands for.

    Raises:
        UserError: Pillow knows no such format.
    """
    content, info = io.BytesIO(), PngInfo()
    info.add_text("Software", SOFTWARE)
    kind = Image.registered_extensions().get(suffix.lower())
    try:
        if kind is None:
            raise KeyError(suffix)
        Image.fromarray(picture).save(content, kind, **({"pnginfo": info} if kind == "PNG" else {}))
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"{suffix or 'no suffix'}: Pillow writes no such pictures; take .png or .jpg") from error
    return content.getvalue()
