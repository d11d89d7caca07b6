"""What ``raydelta predict`` is given: files, folders, globs and addresses → named photographs and videos."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs
from numpy.typing import NDArray

from raydelta.data.listing import SUFFIXES, File, Listing, has_suffix, list_pictures
from raydelta.data.shards import BadItem, is_plain
from raydelta.errors import UserError
from raydelta.storage.files import absolute, explain, is_remote, open_file_address, without_secrets

LONGEST = 255  # bytes of a file's name, on the usual file systems
VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


class Input(NamedTuple):
    """A photograph, or a video; ``name`` is its path below what was given, without suffix."""

    name: str
    address: str

    @property
    def is_video(self) -> bool:
        return has_suffix(self.address.partition("?")[0], VIDEOS)


def find_inputs(given: Sequence[str]) -> tuple[list[Input], list[BadItem]]:
    """All inputs by name, and the files that cannot be used, with the reason.

    Raises:
        UserError: something given is not there or has nothing in it, two inputs have one name, or PyAV is missing.
    """
    found: dict[str, Input] = {}
    bad: list[BadItem] = []
    videos: set[str] = set()
    for source in map(absolute, given):
        listing = _expand(source)
        bad += listing.links
        if not listing.files and not listing.links:
            raise UserError(f"{without_secrets(source)}: no photograph or video there")
        for path, address, _ in listing.files:
            item = Input(path.rpartition(".")[0] or path, address)
            other = found.get(item.name)
            if other is not None and other.address != address:
                raise UserError(
                    f"{without_secrets(address)} and {without_secrets(other.address)} would both become {item.name!r}: "
                    "give the folder that holds both, or predict them into two folders"
                )
            if not is_plain(item.name):
                bad.append(BadItem(address, "the name has characters that are not printable, or a backslash"))
            elif len(f"{item.name.rpartition('/')[2]}.png".encode()) > LONGEST:
                bad.append(BadItem(address, f"its mask's name would be longer than {LONGEST} bytes; rename it"))
            else:
                found[item.name] = item
                videos |= {item.name} if item.is_video else set()
    for name in found:
        inside = videos.intersection(parent.as_posix() for parent in Path(name).parents)
        if inside:
            raise UserError(f"{name}: lies in a folder named like the video {inside.pop()}; rename one of them")
    for name, item in list(found.items()):
        parents = (parent.as_posix() for parent in Path(name).parents)
        taken = [p for p in parents if p.endswith(".png") and p.removesuffix(".png") in found]
        if taken:
            named = without_secrets(found[taken[0].removesuffix(".png")].address)
            bad.append(BadItem(item.address, f"its folder is named like the mask of {named}; rename one of them"))
            del found[name]
    if videos:
        _import_av()
    return sorted(found.values()), bad


def _expand(source: str) -> Listing:
    """The files that one argument stands for, their paths below its folder."""
    kinds = SUFFIXES | VIDEOS
    if not is_remote(source):
        path = Path(source)
        if path.is_dir():
            return list_pictures(path, kinds)
        if path.exists():
            return Listing([File(path.name, source, "")], [], [])
    elif not re.search(r"[*\[]", source):
        files, path_there = open_file_address(source)
        try:
            kind = files.get_file_info(path_there).type
        except OSError as error:
            raise explain(without_secrets(source), error) from error
        if kind == pyarrow.fs.FileType.File:
            return Listing([File(path_there.rpartition("/")[2], source, "")], [], [])
        return list_pictures(source, kinds)
    base, question, options = source.partition("?") if is_remote(source) else (source, "", "")
    parts = base.split("/")
    fixed = next((place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
    if fixed is None:
        raise UserError(f"{source}: there is no such file or folder")
    listing = list_pictures("/".join(parts[:fixed]) + question + options or "/", kinds)
    pattern = _compile_glob("/".join(parts[fixed:]))
    return listing._replace(files=[file for file in listing.files if pattern.fullmatch(file.path)], links=[])


def _compile_glob(pattern: str) -> re.Pattern[str]:
    """As a shell reads it: ``*`` and ``?`` stay within a folder, ``**/`` goes through any."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    return re.compile("".join(translated.get(p, p if p[:1] == "[" and p[-1:] == "]" else re.escape(p)) for p in parts))


def read_frames(address: str) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, RGB [H, W, 3], one after another.

    Raises:
        BadItem: it cannot be decoded, from here on.
    """
    av = _import_av()
    count = 0
    try:
        files, path = open_file_address(address)
        with files.open_input_file(path) as stream, av.open(stream) as container:
            if not container.streams.video:
                raise BadItem(address, "has no pictures in it")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                count += 1
    except (av.error.FFmpegError, OSError) as error:
        raise BadItem(address, f"cannot be decoded after {count} frames: {error}") from error


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError("videos are read with PyAV, which is not installed: pip install 'raydelta[video]'") from error
    return av
