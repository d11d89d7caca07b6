"""What the values in the label files of published data sets mean, and how common each class is there.

One YAML file for each data set: ``ids`` (value → name), where known ``shares`` (name → percent of all pixels) and, for
dumps that hold colours instead of ids, ``colours`` (value → RGB colours).
"""

import functools
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raydelta.data.taxonomy import BUILT_IN, IGNORE, Taxonomy, get_taxonomy, map_names, plain_name
from raydelta.errors import UserError
from raydelta.parsing import read_yaml_file

FOLDER = Path(__file__).parent
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
NO_CLASS = {"void", "unlabeled", "unlabelled", "reserved"}
"""Names of what nobody expects to become a class."""


class Table(BaseModel):
    """The meaning of the values in the label files of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: dict[int, str]
    shares: dict[str, float] = {}
    colours: dict[int, list[tuple[int, int, int]]] = {}

    @property
    def void(self) -> int | None:
        """A value that means no class, if there is one."""
        return next((value for value, name in self.ids.items() if plain_name(name) in NO_CLASS), None)

    def to(self, taxonomy: Taxonomy) -> dict[int, int]:
        """Value in the files → id of the taxonomy or 255."""
        return map_names(self.ids, taxonomy)

    def dropped(self, taxonomy: Taxonomy) -> list[str]:
        """Names that have no class in the taxonomy and become void."""
        names = [self.ids[value] for value, target in self.to(taxonomy).items() if target == IGNORE]
        return sorted(set(names) - NO_CLASS)

    def shares_of(self, taxonomy: Taxonomy) -> dict[str, float]:
        """Class of the taxonomy → published percent of all pixels; empty if nothing was published."""
        shares: dict[str, float] = {}
        for name, percent in self.shares.items():
            target = taxonomy.find(name)
            if target != IGNORE:
                shares[taxonomy.classes[target]] = shares.get(taxonomy.classes[target], 0.0) + percent
        return shares


def shipped_tables() -> list[str]:
    """The names of the tables that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_table(name: str) -> Table:
    """A shipped table, the ids of a built-in taxonomy, or a YAML or JSON file: value → name, or a list of names.

    A value is a number, or a colour (``"#faaaa0": other``).

    Raises:
        UserError: neither, or not of that form.
    """
    if name in shipped_tables():
        return _read_shipped(name)
    if name in BUILT_IN:
        return own_ids(BUILT_IN[name])
    if not Path(name).is_file():
        shipped = ", ".join([*shipped_tables(), *BUILT_IN])
        raise UserError(f"id table {name!r} is neither a file nor one of the shipped ones: {shipped}")
    return _read(Path(name))


def own_ids(taxonomy: Taxonomy) -> Table:
    """The table of labels that hold the ids of a taxonomy, and 255."""
    return Table(ids=dict(enumerate(taxonomy.classes)) | {IGNORE: "void"})


def extend(table: Table, more: Table) -> Table:
    """A table with the colours of another one added, for what a palette leaves out."""
    values = {plain_name(name): value for value, name in table.ids.items()}
    ids, colours = dict(table.ids), {value: list(found) for value, found in table.colours.items()}
    for value, found in more.colours.items():
        own = values.get(plain_name(more.ids[value]), max(ids) + 1)
        ids.setdefault(own, more.ids[value])
        values.setdefault(plain_name(more.ids[value]), own)
        colours[own] = colours.get(own, []) + found
    return table.model_copy(update={"ids": ids, "colours": colours})


@functools.cache
def _read_shipped(name: str) -> Table:
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Table:
    tree = read_yaml_file(path)
    try:
        if isinstance(tree, list):
            tree = dict(enumerate(tree))
        table = Table(**_with_colours(tree if "ids" in tree else {"ids": tree}))
    except (ValidationError, TypeError, AttributeError) as error:
        raise UserError(f"id table {path}: expected value: name lines, or a list of names: {error}") from error
    if not table.ids or not all(0 <= value <= 65535 for value in table.ids):
        raise UserError(f"id table {path}: needs values from 0 to 65535 with a name each")
    return table


def _with_colours(fields: dict[str, Any]) -> dict[str, Any]:
    """Colours among the ids become values of their own, one for each name."""
    given = {key: name for key, name in fields["ids"].items() if isinstance(key, str) and COLOUR.fullmatch(key)}
    if not given:
        return fields
    ids = {key: name for key, name in fields["ids"].items() if key not in given}
    colours = dict(fields.get("colours", {}))
    for key, name in given.items():
        value = next((value for value, known in ids.items() if known == name), len(ids))
        while ids.get(value, name) != name:
            value += 1
        ids[value] = name
        colours.setdefault(value, []).append(tuple(bytes.fromhex(key[1:])))
    return fields | {"ids": ids, "colours": colours}


def values_in(name: str, own: Taxonomy) -> tuple[list[int], list[str]]:
    """The way out: ids of a taxonomy → values of a shipped table (``cityscapes``: labelIds) or another taxonomy.

    Returns:
        the value of each of the ids 0 to 255, and the classes that have none there and become void.

    Raises:
        UserError: there is no such table or taxonomy.
    """
    if name in shipped_tables():
        ids = read_table(name).ids
        values = {plain_name(known): value for value, known in reversed(ids.items())}
        void = next((value for value, known in ids.items() if known in NO_CLASS), IGNORE)
    elif name in BUILT_IN or Path(name).is_file():
        values, void = {plain_name(known): value for value, known in enumerate(get_taxonomy(name).classes)}, IGNORE
    else:
        raise UserError(
            f"taxonomy {name!r}: there are {', '.join(BUILT_IN)}, files, and the ids of {', '.join(shipped_tables())}"
        )
    lookup, dropped = [void] * 256, []
    for number, known in enumerate(own.classes):
        names = [plain_name(each) for each in (known, *own.also.get(known, ()))]
        hit = next((values[each] for each in names if each in values), None)
        lookup[number] = void if hit is None else hit
        dropped += [known] if hit is None else []
    return lookup, dropped


def tables_that_hold(values: set[int]) -> list[str]:
    """The shipped tables in which all of these values occur."""
    return [name for name in shipped_tables() if values <= read_table(name).ids.keys()]
