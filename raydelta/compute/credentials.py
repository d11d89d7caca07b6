"""The cluster's token: where it is kept, what a request carries, and whom it is never sent to."""

import contextlib
import os
import pwd
import secrets
import socket
from pathlib import Path

from raydelta.errors import UserError

TOKEN = Path("~/.ray/auth_token")


def make_token() -> None:
    """Write the token of this machine's clusters, readable by its owner only: Ray would write it readable by all.

    Raises:
        UserError: it cannot be written.
    """
    path = TOKEN.expanduser()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_hex(32).encode())
            os.close(descriptor)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise UserError(f"{TOKEN}: cannot be written for its owner alone: {error.strerror}") from error


def token_header() -> dict[str, str]:
    """The header of a request to a cluster's dashboard; empty where authentication is off."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN)
    try:
        token = os.environ.get("RAY_AUTH_TOKEN") or path.expanduser().read_text().strip()
    except OSError as error:
        raise UserError(f"{path}: the cluster's token cannot be read: {error.strerror}; put it there") from error
    return {"Authorization": f"Bearer {token}"}


def listeners(address: str) -> set[int] | None:
    """The ids of the users who listen on the port of ``HOST:PORT`` of this machine.

    None: it is another machine, or there is no ``/proc/net`` that says it.
    """
    host, _, port = address.rpartition(":")
    users: set[int] = set()
    try:
        if not _is_here(host.strip("[]")):
            return None
        tables = [Path("/proc/net/tcp").read_text()]
        with contextlib.suppress(FileNotFoundError):  # no IPv6 here
            tables.append(Path("/proc/net/tcp6").read_text())
    except OSError:
        return None
    for line in "".join(table.partition("\n")[2] for table in tables).splitlines():
        _, local, _, state, _, _, _, user, *_ = line.split()
        if state == "0A" and int(local.rpartition(":")[2], 16) == int(port):  # 0A: it listens
            users.add(int(user))
    return users


def _is_here(host: str) -> bool:
    """Whether a host's address is one of this machine: only those can be bound."""
    family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(where)
        except OSError:
            return False
    return True


def name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def refuse_impostor(address: str) -> None:
    """Before the token is sent to ``HOST:PORT``: who listens there must be this user, or root.

    The port of a tunnel, or of a Ray that has ended, can be taken by any user of the machine.

    Raises:
        ConnectionRefusedError: nobody listens there.
        UserError: another user does.
    """
    users = listeners(address)
    if users == set():
        raise ConnectionRefusedError(address)
    strangers = (users or set()) - {os.getuid(), 0}
    if strangers:
        raise UserError(
            f"{address}: another user of this machine ({name_of(min(strangers))}) answers there; the cluster's token "
            "is not sent to them"
        )
