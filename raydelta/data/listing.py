"""Which files of a source belong together: walking it, pairing by patterns, sequences, splits by sequence.

A pattern is a path below the source without suffix, with placeholders: ``leftImg8bit/{split}/{path}_leftImg8bit``. An
image and a label belong together when the placeholders of both have the same values.
"""

import fnmatch
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple
from urllib.parse import quote

import pyarrow.fs

from raydelta.data.shards import BadItem, Item, is_plain
from raydelta.errors import UserError
from raydelta.storage.files import is_remote, open_address, without_secrets

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
PLACEHOLDERS = {
    "any": r"(?:[^/]+/)*",  # folders, or nothing; brings its own slash, and does not count
    "split": r"[^/]+",
    "folder": r"(?:[^/]+/)*",  # as any, but counts
    "camera": r"Stereo_[^/]+/Omni_[^/]+",
    "path": r".+",
    "name": r"[^/]+",
    "number": r"\d+",
}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
ONLY_SPLIT = "train"  # of a source that has none
USUAL_SPLITS = ("train", "val", "test")

Key = tuple[tuple[str, str], ...]


class File(NamedTuple):
    """A picture in a source."""

    path: str  # below the source, with / and its suffix
    address: str
    version: str  # changes when the content does


class Listing(NamedTuple):
    """The pictures of a source, what is called like one and must not be opened, and the empty folders."""

    files: list[File]
    links: list[BadItem]  # links that lead elsewhere, pipes, devices, and what cannot be looked at
    empty: list[str]  # below the source


class Paired(NamedTuple):
    """The items of every split, and what cannot become one."""

    splits: dict[str, list[Item]]
    bad: list[BadItem]


def list_pictures(source: str | Path, suffixes: Collection[str] = SUFFIXES) -> Listing:
    """Every picture below a folder or address but for hidden files (macOS leaves ``._NAME.png`` beside each).

    Links that lead out of the source, and links to folders, are not followed.

    Raises:
        UserError: not a folder, or one below it cannot be read.
    """
    if is_remote(source):
        return Listing(sorted(_list_remote(str(source), suffixes)), [], [])
    root = Path(source).expanduser().resolve()
    if os.path.isfile(root):  # noqa: PTH113 - false, and no error, where it cannot be looked at
        what = "a file, not a folder: give the folder that it is in"
        if root.suffix.lower() in ARCHIVES:
            what = "an archive: unpack it first"
        raise UserError(f"{source}: {what}")
    listing = Listing([], [], [])
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                shown = [entry for entry in entries if not _is_hidden(entry.name)]
                for entry in shown:
                    _list_entry(entry, root, folders, listing, suffixes)
                if not shown:
                    listing.empty.append(Path(folder).relative_to(root).as_posix())
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be read as a folder: {error.strerror}") from error
    return Listing(sorted(listing.files), sorted(listing.links, key=str), listing.empty)


def _list_entry(
    entry: os.DirEntry[str], root: Path, folders: list[str], listing: Listing, suffixes: Collection[str]
) -> None:
    if entry.is_symlink() and (entry.is_dir() or has_suffix(entry.name, suffixes)):
        path = Path(entry.path)
        if not path.resolve().is_relative_to(root):
            listing.links.append(BadItem(path, f"a symbolic link that leads out of {root}"))
            return
        if entry.is_dir():
            listing.links.append(BadItem(path, "a symbolic link to a folder"))
            return
    if entry.is_dir():
        folders.append(entry.path)
    elif has_suffix(entry.name, suffixes):
        try:
            stat = entry.stat()
        except OSError as error:
            listing.links.append(BadItem(entry.path, f"cannot be read: {error.strerror}"))
            return
        if not S_ISREG(stat.st_mode):
            listing.links.append(BadItem(entry.path, "a pipe or device, not a file"))
            return
        version = f"{stat.st_size}:{stat.st_mtime_ns}"
        listing.files.append(File(entry.path[len(str(root)) + 1 :], entry.path, version))


def _list_remote(source: str, suffixes: Collection[str]) -> Iterable[File]:
    files, base = open_address(source)
    try:
        infos = files.get_file_info(pyarrow.fs.FileSelector(base, recursive=True))
    except OSError as error:
        raise UserError(f"{without_secrets(source)}: cannot be listed: {error}") from error
    address, question, options = source.partition("?")
    for info in infos:
        path = info.path.removeprefix(base).lstrip("/")
        if info.is_file and has_suffix(path, suffixes) and not any(map(_is_hidden, path.split("/"))):
            folder, slash, name = path.rpartition("/")  # the name of a file is taken as it is, its folder is decoded
            place = f"{address.rstrip('/')}/{quote(folder)}{slash}{name}{question}{options}"
            yield File(path, place, f"{info.size}:{info.mtime_ns}")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern.

    Raises:
        UserError: an unknown or repeated placeholder, or none that tells the images apart.
    """
    parts = re.split(r"\{([^}]*)\}", pattern)
    names = parts[1::2]
    unknown = [name for name in names if name not in PLACEHOLDERS]
    if unknown or len(set(names)) < len(names) or not set(names) & {"path", "name", "number"}:
        raise UserError(
            f"pattern {pattern!r}: a path below the source without suffix, with the placeholders "
            f"{', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}, each at most once, and one of the last three"
        )
    return _compile(pattern)


def _compile(pattern: str) -> re.Pattern[str]:
    regex = ""
    for index, part in enumerate(re.split(r"\{([^}]*)\}", pattern)):
        if index % 2 == 0:
            regex += re.escape(part)
        else:
            regex += PLACEHOLDERS[part] if part == "any" else f"(?P<{part}>{PLACEHOLDERS[part]})"
    return re.compile(regex)


def pair(
    source: str | Path,
    listing: Listing,
    images: str,
    labels: str | None,
    *,
    sequence: Callable[[str], str],
    unlabelled_splits: Sequence[str] = (),
    allow_unlabelled: bool = False,
    only: str | None = None,
) -> Paired:
    """Images and labels by patterns; a split without any label is an unlabelled one.

    Args:
        labels: None if there are none.
        sequence: image id → the drive or clip it belongs to.
        unlabelled_splits: splits whose labels are dummies, not read.
        allow_unlabelled: an image without a label in a split with labels is an unlabelled image, not an error.
        only: a shell pattern that the image ids have to match.
    """
    names = list(compile_pattern(images).groupindex)
    if labels and set(compile_pattern(labels).groupindex) != set(names):
        raise UserError(f"patterns {images!r} and {labels!r}: both need the same placeholders, but for {{any}}")
    label_files = _matching(listing, labels, names) if labels else {}
    taken = {file.address for group in label_files.values() for file in group}
    image_files = _matching(listing, images, names, taken)
    if only is not None:
        image_files = {key: group for key, group in image_files.items() if fnmatch.fnmatch(_id(key), only)}
        label_files = {key: group for key, group in label_files.items() if fnmatch.fnmatch(_id(key), only)}
    label_files = {key: group for key, group in label_files.items() if _split(key) not in unlabelled_splits}
    labelled_splits = {_split(key) for key in label_files}
    for folder in listing.empty if "{split}" in images else ():
        match = _compile(images.partition("{split}")[0] + "{split}").fullmatch(folder)
        if match and match["split"] in USUAL_SPLITS:
            raise UserError(f"split {match['split']!r} is empty: no image in {source}/{folder}")
    patterns = [pattern for pattern in (images, labels) if pattern]
    bad = [link for link in listing.links if any(_concerns(source, link, pattern) for pattern in patterns)]
    splits: dict[str, list[Item]] = defaultdict(list)
    for key in sorted(image_files.keys() | label_files.keys()):
        pictures, masks = image_files.get(key, []), label_files.get(key, [])
        twice = next((group for group in (pictures, masks) if len(group) > 1), None)
        files = [file.address for file in (*pictures, *masks)]
        if twice is not None:
            bad.append(
                BadItem(
                    twice[1].address,
                    f"stands for the same image as {twice[0].path}: which one is meant? Keep one of them",
                )
            )
        elif not pictures:
            bad.append(BadItem(files[0], f"the label has no image of the same name ({images})"))
        elif not masks and _split(key) in labelled_splits and not allow_unlabelled:
            bad.append(BadItem(files[0], f"the image has no label of the same name ({labels})"))
        elif not is_plain(_id(key)):
            bad.append(BadItem(files[0], "the name has characters that are not printable, or a backslash"))
        else:
            version = " ".join(file.version for file in (*pictures, *masks))
            label = files[1] if masks else None
            splits[_split(key)].append(Item(_id(key), sequence(_id(key)), files[0], label, version))
    return Paired(dict(sorted(splits.items(), key=lambda entry: split_order(entry[0]))), bad)


def split_order(split: str) -> tuple[bool, bool, str]:
    """Sorts train first and test last."""
    return split != "train", split == "test", split


def _matching(
    listing: Listing, pattern: str, names: Sequence[str], without: Collection[str] = ()
) -> dict[Key, list[File]]:
    """The files at a pattern, by the values of its placeholders."""
    compiled = compile_pattern(pattern)
    found: dict[Key, list[File]] = defaultdict(list)
    for file in listing.files:
        match = compiled.fullmatch(file.path.rpartition(".")[0])
        if match and file.address not in without:
            found[tuple((name, match[name]) for name in names)].append(file)
    return found


def _id(key: Key) -> str:
    return "/".join(value.strip("/") for name, value in key if name != "split" and value)


def _split(key: Key) -> str:
    return dict(key).get("split", ONLY_SPLIT)


def _concerns(source: str | Path, link: BadItem, pattern: str) -> bool:
    """Whether something behind a link could match a pattern: it lies at or below a folder that the pattern names."""
    named = {part for part in pattern.split("/") if "{" not in part}
    parts = Path(link.file).relative_to(Path(source).expanduser().resolve()).parts
    return not named or bool(named & set(parts))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def has_suffix(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file is of one of these kinds (in lower case, with the dot)."""
    return os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122 - half a million times, and Path is slow


def sequence_of(identifier: str) -> str:
    """The drive or clip that an image belongs to, read from its id (its path within the split, without suffix).

    The trailing frame number goes, and the separator and letter before it: ``0001TP_008550`` → ``0001TP``,
    ``Seq05VD_f01620`` → ``Seq05VD``, ``aachen/aachen_000000_000019`` → ``aachen/aachen_000000``. A name that is only
    a number belongs to its folder (``clip7/000123`` → ``clip7``, ``000123`` → ``all``). A name without a number at its
    end is a sequence of its own.
    """
    folder, _, name = identifier.rpartition("/")
    match = re.fullmatch(r"(.*?)(?:[-_. ]+[A-Za-z]?)?\d+", name)
    prefix = match[1] if match else name
    return "/".join(part for part in (folder, prefix) if part) or "all"


def split_by_sequence(items: Sequence[Item], shares: Mapping[str, float], seed: int) -> dict[str, list[Item]]:
    """Splits of about these shares of the images; a sequence is never divided.

    Raises:
        UserError: shares that are not positive or fewer sequences than splits.
    """
    if not shares or min(shares.values()) <= 0:
        raise UserError(f"split shares {dict(shares)}: every share has to be above 0")
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.sequence].append(item)
    if len(groups) < len(shares):
        raise UserError(
            f"{len(shares)} splits need at least as many sequences, and there are {len(groups)} "
            f"({', '.join(sorted(groups)[:5])}): frames of one sequence are too alike to be divided"
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    names.sort(key=lambda name: len(groups[name]), reverse=True)  # the large ones first, the small ones even out
    total = sum(shares.values())
    missing = {split: share / total * len(items) for split, share in shares.items()}
    splits: dict[str, list[Item]] = {split: [] for split in shares}
    for place, name in enumerate(names):
        empty = [split for split in splits if not splits[split]]
        choice = empty if len(names) - place == len(empty) else list(splits)
        split = max(choice, key=lambda split: missing[split])
        splits[split] += groups[name]
        missing[split] -= len(groups[name])
    return {split: sorted(chosen) for split, chosen in splits.items()}
