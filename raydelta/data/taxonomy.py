"""Taxonomies: class lists with palettes, and which class a name of another data set means.

The built-in ones are YAML files in ``taxonomies/``. ``tables/`` says which pixel value means which name in which data
set. Names lead from there to a taxonomy, so any data set can be imported with any taxonomy.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from raydelta.errors import UserError
from raydelta.parsing import read_yaml_file

IGNORE = 255
"""Label of pixels that belong to no class; never trained on, never counted."""


def _printable(name: str) -> str:
    """Names are shown in terminals, where other characters are commands."""
    if not name.isprintable():
        raise ValueError(f"the name {name!r} has characters that are not printable")
    return name


Colour = Annotated[int, Field(ge=0, le=255)]
Name = Annotated[str, AfterValidator(_printable)]


class Taxonomy(BaseModel):
    """A named list of classes with ids 0..C-1 and a colour each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    classes: tuple[Name, ...]
    palette: tuple[tuple[Colour, Colour, Colour], ...]
    also: dict[str, tuple[Name, ...]] = {}  # class → names in other data sets that count as it

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len(set(self.classes)) < len(self):
            raise ValueError("a class name occurs twice")
        if not 1 <= len(self) <= IGNORE or len(self.palette) != len(self):
            raise ValueError(f"needs 1 to {IGNORE} classes and one palette colour for each")
        unknown = sorted(self.also.keys() - set(self.classes))
        if unknown:
            raise ValueError(f"also: {', '.join(unknown)} is not among the classes")
        return self

    def __len__(self) -> int:
        return len(self.classes)

    def find(self, name: str) -> int:
        """The id of the class that a name of any data set counts as, or ``IGNORE``."""
        wanted = plain_name(name)
        own = [plain_name(known) for known in self.classes]
        if wanted in own:
            return own.index(wanted)
        counted = (i for i, known in enumerate(self.classes) if wanted in map(plain_name, self.also.get(known, ())))
        return next(counted, IGNORE)


def map_names(names: Mapping[int, str], taxonomy: Taxonomy) -> dict[int, int]:
    """Values with their names → values with ids of the taxonomy, ``IGNORE`` where it has no such class."""
    return {value: taxonomy.find(name) for value, name in names.items()}


def get_taxonomy(name: str) -> Taxonomy:
    """The built-in taxonomy of that name, or the one in a YAML/JSON file.

    A file is a list of class names, or has the keys name, classes (a list, or names with their colours), palette (if
    the classes bring no colours) and also.

    Raises:
        UserError: neither a built-in name nor a readable taxonomy file.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"taxonomy {name!r} is neither built in ({', '.join(BUILT_IN)}) nor a file")
    return _read(path)


def _read(path: Path) -> Taxonomy:
    tree = read_yaml_file(path)
    try:
        return Taxonomy(**_fields(tree, path.stem))
    except ValidationError as error:
        reasons = (str(problem.get("ctx", {}).get("error", "")) for problem in error.errors())
        reason = next((reason for reason in reasons if reason), f"expected keys name, classes and palette: {error}")
        raise UserError(f"taxonomy file {path}: {reason}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"taxonomy file {path}: expected keys name, classes and palette: {error}") from error


def _fields(tree: Any, stem: str) -> dict[str, Any]:
    if isinstance(tree, list):
        tree = {"name": stem, "classes": tree}
    if isinstance(tree["classes"], dict):
        tree = tree | {"classes": list(tree["classes"]), "palette": list(tree["classes"].values())}
    if "palette" not in tree:
        tree = tree | {"palette": [_colour(index) for index in range(len(tree["classes"]))]}
    return tree


def plain_name(name: str) -> str:
    """``Traffic_Sign`` → ``traffic sign``."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


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


BUILT_IN = {path.stem: _read(path) for path in sorted((Path(__file__).parent / "taxonomies").glob("*.yaml"))}
CAMVID11 = BUILT_IN["camvid11"]
