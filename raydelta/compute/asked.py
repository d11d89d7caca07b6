"""Addresses that this user has asked for. What somebody else's file names is opened only if it is one of them.

A command line or a program names them; they are kept in ``~/.local/state/raydelta/addresses``, one a line.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raydelta.config import Config
from raydelta.errors import UserError
from raydelta.storage.files import is_remote, read_bytes, without_secrets

VARIABLE = "RAYDELTA_ASKED"
"""Environment variable with such addresses, one a line: a job on a cluster has no other record of its user's."""


def remember(addresses: Iterable[str]) -> None:
    """Note that the user has named these."""
    known = _known()
    new = [
        address for address in dict.fromkeys(map(_plain, addresses)) if _is_elsewhere(address) and address not in known
    ]
    if not new:
        return
    with contextlib.suppress(OSError):  # a home that cannot be written: they are asked for again
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            file.write("".join(f"{address}\n" for address in new))


def check_asked(addresses: Mapping[str, str | None], source: str, way: str) -> None:
    """Refuse addresses that no command of the user's has named.

    Args:
        addresses: by the field that they stand in; local ones are always open.
        source: where they stand, and ``way``: what the user says to open them; both for the message.

    Raises:
        UserError: one of them is new.
    """
    known = _known()
    for field, address in addresses.items():
        if address is not None and _is_elsewhere(address) and _plain(address) not in known:
            raise UserError(
                f"{source}: names {field} = {without_secrets(address)}, which no command of yours has named yet; "
                f"somebody else's file may name any server. To open it: {way}"
            )


def addresses_of(config: Config) -> dict[str, str]:
    """The fields that name something which may lie on another machine."""
    named = {"data.synthetic": config.data.synthetic, "data.real": config.data.real}
    if config.tracking.mlflow is not None:
        named["tracking.mlflow"] = config.tracking.mlflow
    if config.tracking.wandb is not None:
        named["tracking.wandb"] = f"wandb://{config.tracking.wandb}"
    return named


def check_named(config: Config, own: Mapping[str, Any]) -> None:
    """What a file names is not opened on another machine, unless the user has named it too.

    Args:
        own: the fields that the user has named, on the command line.

    Raises:
        UserError: an address that no command has named yet, or weights to download.
    """
    named = addresses_of(config)
    remember(address for field, address in named.items() if field in own)
    for field, address in named.items():
        check_asked({field: address}, "a config or space file", f"{field}=… on the command line, once")
    weights = config.segmenter.weights
    if weights is not None and config.segmenter.weights_file is None and "segmenter.weights" not in own:
        raise UserError(
            f"a config or space file names segmenter.weights = {weights}, which is downloaded; to do so: "
            f"segmenter.weights={weights} on the command line"
        )


def _is_elsewhere(address: str) -> bool:
    return is_remote(address) and urlsplit(address).scheme not in ("file", "sqlite")


def _plain(address: str) -> str:
    return address.strip().rstrip("/")


def _known() -> set[str]:
    given = os.environ.get(VARIABLE, "")
    with contextlib.suppress(OSError, ValueError):
        given += "\n" + read_bytes(str(_file()), 2**20).decode()
    return set(map(_plain, given.splitlines()))


def _file() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "raydelta" / "addresses"
