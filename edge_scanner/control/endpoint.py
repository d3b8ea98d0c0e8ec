"""Endpoints: which may be bound, and what a socket file needs before and after."""

from __future__ import annotations

import ipaddress
import socket
import stat
from pathlib import Path

from edge_scanner.errors import UsageError

FOLDER_MODE = 0o750
SOCKET_MODE = 0o660


def check(endpoint: str, *, curve: bool = False) -> None:
    """Refuse an endpoint that must not be bound.

    Raises
    ------
    UsageError
        Neither ipc nor tcp, or tcp off loopback without CURVE.
    """
    transport, _, address = endpoint.partition("://")
    if transport not in ("ipc", "tcp") or not address:
        raise UsageError(f"The endpoint {endpoint!r} is not of the form ipc://PATH or tcp://ADDRESS:PORT.")
    if transport == "tcp" and not curve and not is_loopback(address):
        raise UsageError(
            f"The endpoint {endpoint} can be reached from the network, and no CURVE keys are configured.",
            "Use ipc:// or tcp://127.0.0.1:PORT, or configure keys.",
        )


def socket_file(endpoint: str) -> Path | None:
    """Return the file of an ipc endpoint; None for the others and for abstract names."""
    transport, _, address = endpoint.partition("://")
    return Path(address) if transport == "ipc" and not address.startswith("@") else None


def prepare(endpoint: str) -> None:
    """Make the folder of a socket file and remove a stale file.

    Raises
    ------
    UsageError
        Something answers there already, or the file is not a socket, or the folder cannot be made.
    """
    path = socket_file(endpoint)
    if path is None:
        return
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(FOLDER_MODE)
        if not path.exists():
            return
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise UsageError(f"{path} exists and is not a socket.", "Choose another endpoint or remove the file.")
        if _answers(path):
            raise UsageError(f"Another daemon answers at {endpoint}.", "Stop it first, or choose another endpoint.")
        path.unlink()
    except OSError as error:
        raise UsageError(f"The socket {path} cannot be made ({error}).", "Check the folder's permissions.") from error


def grant(endpoint: str) -> None:
    """Let the group of a socket file connect (connecting needs write permission)."""
    if path := socket_file(endpoint):
        path.chmod(SOCKET_MODE)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def is_loopback(address: str) -> bool:
    """Tell whether `HOST:PORT` can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
