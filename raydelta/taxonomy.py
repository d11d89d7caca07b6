"""Class lists and palettes. Which pixel value of which foreign data set means what lives with its importer."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raydelta.errors import UserError

IGNORE = 255
"""Label of pixels that belong to no class; never trained on, never counted."""


Colour = Annotated[int, Field(ge=0, le=255)]


class Taxonomy(BaseModel):
    """A named list of classes with ids 0..C-1 and a colour each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[Colour, Colour, Colour], ...]

    def __len__(self) -> int:
        return len(self.classes)


CAMVID11 = Taxonomy(
    name="camvid11",
    classes=(
        "sky", "building", "pole", "road", "sidewalk", "vegetation",
        "traffic sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (70, 130, 180), (70, 70, 70), (153, 153, 153), (128, 64, 128), (244, 35, 232), (107, 142, 35),
        (220, 220, 0), (190, 153, 153), (0, 0, 142), (220, 20, 60), (119, 11, 32),
    ),
)  # fmt: skip

BUILT_IN = {taxonomy.name: taxonomy for taxonomy in (CAMVID11,)}


def get_taxonomy(name: str) -> Taxonomy:
    """The built-in taxonomy of that name, or the one in a YAML/JSON file (keys: name, classes, palette).

    Raises:
        UserError: neither a built-in name nor a readable taxonomy file.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"taxonomy {name!r} is neither built in ({', '.join(BUILT_IN)}) nor a file")
    try:
        fields = yaml.safe_load(path.read_text())
        if isinstance(fields, list):
            fields = {"name": path.stem, "classes": fields}
        if "palette" not in fields:
            fields["palette"] = [_colour(index) for index in range(len(fields["classes"]))]
        taxonomy = Taxonomy(**fields)
    except (yaml.YAMLError, ValidationError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"taxonomy file {path}: expected keys name, classes (a list) and palette: {error}") from error
    if len(set(taxonomy.classes)) < len(taxonomy):
        raise UserError(f"taxonomy file {path}: a class name occurs twice")
    if not 1 <= len(taxonomy) <= IGNORE or len(taxonomy.palette) != len(taxonomy):
        raise UserError(f"taxonomy file {path}: needs 1 to {IGNORE} classes and one palette colour for each")
    return taxonomy


def _colour(index: int) -> tuple[int, int, int]:
    """The Pascal VOC colour of a class id, starting at 1 because 0 is black."""
    red = green = blue = 0
    rest = index + 1
    for bit in range(8):
        red |= (rest & 1) << (7 - bit)
        green |= ((rest >> 1) & 1) << (7 - bit)
        blue |= ((rest >> 2) & 1) << (7 - bit)
        rest >>= 3
    return red, green, blue
