"""What ``raydelta.load`` returns: a model that takes photographs in whatever form, and the masks it makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from raydelta.data.reading import EIGHT_BIT, read_image
from raydelta.data.taxonomy import Taxonomy
from raydelta.deploy.frames import KINDS, encode_picture
from raydelta.deploy.network import Deployed, read_network
from raydelta.deploy.windows import segment
from raydelta.errors import UserError
from raydelta.results.pictures import Pixels, colourise, overlay
from raydelta.storage.files import absolute, write_atomically

Photograph = str | Path | Image.Image | NDArray[np.generic] | Tensor


@dataclass(frozen=True)
class Masks:
    """The classes of a photograph's pixels, or of a batch of photographs."""

    ids: NDArray[np.uint8] | Tensor  # (H, W), or (N, H, W) for a batch; a tensor if the photographs were one
    photographs: Pixels  # (H, W, 3) or (N, H, W, 3)
    taxonomy: Taxonomy

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each id."""
        return self.taxonomy.classes

    def colour(self) -> Pixels:
        """The palette's colours: (H, W, 3) or (N, H, W, 3)."""
        return colourise(_as_array(self.ids), self.taxonomy)

    def overlay(self, opacity: float = 0.5) -> Pixels:
        """The palette's colours over the photographs: (H, W, 3) or (N, H, W, 3)."""
        return overlay(self.photographs, _as_array(self.ids), self.taxonomy, opacity)

    def save(self, path: str | Path, kind: str = "overlay") -> None:
        """Write a picture; for a batch several, ``NAME-0.png``, ``NAME-1.png``, ….

        Args:
            path: its suffix is the format; ids are written as PNG only.
            kind: ``overlay``, ``colour`` or ``ids`` (8-bit).

        Raises:
            UserError: another kind, or a format that Pillow cannot write or that would change the ids.
        """
        path = Path(path).expanduser()
        if kind not in KINDS:
            raise UserError(f"kind = {kind!r}: choose from {', '.join(KINDS)}")
        if kind == "ids" and path.suffix.lower() != ".png":
            raise UserError(f"{path}: ids are written as .png, other formats may change them")
        pictures = {"ids": lambda: _as_array(self.ids), "colour": self.colour, "overlay": self.overlay}[kind]()
        batch = self.ids.ndim == 3
        for number, picture in enumerate(pictures if batch else [pictures]):
            target = path.with_name(f"{path.stem}-{number}{path.suffix}") if batch else path
            write_atomically(target, encode_picture(picture, target.suffix))


class LoadedModel:
    """A trained model. Call it with photographs, get their masks.

    Attributes:
        network: the plain ``torch.nn.Module`` inside: uint8 (N, H, W, 3) → uint8 (N, H, W), with ``.logits``.
    """

    def __init__(self, network: Deployed) -> None:
        self.network = network

    @property
    def name(self) -> str:
        """The training that it comes from."""
        return self.network.config.run

    @property
    def method(self) -> str | None:
        """Its row of the table; None if an older version exported it."""
        return self.network.config.method

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each id."""
        return self.network.config.taxonomy.classes

    def to(self, device: str | torch.device) -> "LoadedModel":
        """Move the model to a device; photographs may lie anywhere."""
        self.network.to(device)
        return self

    @overload
    def __call__(self, photographs: Photograph) -> Masks: ...

    @overload
    def __call__(self, photographs: list[Photograph] | tuple[Photograph, ...]) -> list[Masks]: ...

    def __call__(self, photographs: Photograph | list[Photograph] | tuple[Photograph, ...]) -> Masks | list[Masks]:
        """The masks of photographs, in their own size.

        Args:
            photographs: a path or address, a Pillow image, a uint8 array (H, W, 3) or (N, H, W, 3), or a uint8 tensor
                of these shapes or (3, H, W) or (N, 3, H, W), RGB; or a list of any of them.

        Returns:
            ``Masks``; for a list, a list of them.

        Raises:
            UserError: a file cannot be read, or an array has another type or shape; the message says what to do.
        """
        if isinstance(photographs, list | tuple):
            return [self(photograph) for photograph in photographs]
        pixels = as_pixels(photographs)
        batch = pixels.ndim == 4
        found = segment(self.network, list(pixels if batch else pixels[None]))
        ids = torch.stack(found) if batch else found[0]
        if isinstance(photographs, Tensor):
            return Masks(ids.to(photographs.device), pixels.cpu().numpy(), self.network.config.taxonomy)
        return Masks(ids.cpu().numpy(), pixels.numpy(), self.network.config.taxonomy)


def load(path: str | Path, method: str | None = None) -> LoadedModel:
    """The model of a finished training, of a row of a sweep's table, or of an exported folder; on the CPU, in fp32.

    Neither Ray nor the data set is needed.

    Args:
        method: which row of a sweep (``guided``, ``student``, ``ensemble-untranslated``, …); if None, the one that its
            table recommends, or ``guided`` if it recommends none.

    Raises:
        UserError: the folder is none of these, or something of it is missing.
    """
    return LoadedModel(read_network(path, method))


def as_pixels(photographs: Photograph) -> Tensor:
    """uint8 RGB (H, W, 3) or (N, H, W, 3) of a photograph in any form; a tensor stays on its device.

    Raises:
        UserError: it cannot be read, or is no 8-bit RGB.
    """
    if isinstance(photographs, str | Path):
        return torch.from_numpy(np.array(read_image(absolute(photographs))[0]))
    if isinstance(photographs, Image.Image):
        if photographs.mode not in EIGHT_BIT:
            raise UserError(
                f"the image has Pillow's mode {photographs.mode}; expected 8 bits per channel: "
                "image.convert('RGB'), after scaling to 0..255"
            )
        return torch.from_numpy(np.array(ImageOps.exif_transpose(photographs).convert("RGB")))
    kind = str(photographs.dtype).removeprefix("torch.")
    if kind != "uint8":
        to = ".to(torch.uint8)" if isinstance(photographs, Tensor) else ".astype('uint8')"
        scale = "(255 * images).round()" if "float" in kind else "images"
        raise UserError(f"images have the type {kind}; expected uint8, 0 to 255: if 0 to 1, {scale}{to}")
    pixels = photographs if isinstance(photographs, Tensor) else torch.from_numpy(np.ascontiguousarray(photographs))
    if pixels.ndim not in (3, 4) or not all(pixels.shape):
        raise UserError(f"images have the shape {tuple(pixels.shape)}; expected RGB, (H, W, 3) or (N, H, W, 3)")
    if pixels.shape[-1] == 3:
        return pixels
    if isinstance(photographs, Tensor) and pixels.shape[-3] == 3:
        return pixels.movedim(-3, -1)
    hint = {1: "repeat the grey channel three times", 4: "leave the transparency out: images[..., :3]"}
    channels = pixels.shape[-1]
    raise UserError(
        f"images have the shape {tuple(pixels.shape)}; expected RGB, (H, W, 3) or (N, H, W, 3)"
        + (f": {hint[channels]}" if channels in hint else "")
    )


def _as_array(ids: NDArray[np.uint8] | Tensor) -> NDArray[np.uint8]:
    return ids.cpu().numpy() if isinstance(ids, Tensor) else ids
