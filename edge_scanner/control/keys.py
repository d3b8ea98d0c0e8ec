"""CURVE keys in files, in the certificate format of ZeroMQ: who the daemon is, and who may connect to it.

One folder: `server.key_secret` (the daemon's pair, for its eyes only), `server.key` (what clients are given), and
`allowed/NAME.key` (the public key of each client that may connect; read at every handshake, so nothing is restarted).
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth

from edge_scanner.errors import NotFoundError, ScannerError, UsageError

SERVER = "server"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_Z85 = re.compile(rb"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")


@dataclass(frozen=True, slots=True)
class Pair:
    """A public and a secret key, 40 characters Z85 each."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Pair({self.public.decode()}, secret)"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client needs for an endpoint with CURVE: the daemon's public key and a pair of its own."""

    server: bytes
    own: Pair

    @classmethod
    def load(cls, server_key: Path | str | None, key: Path | str | None) -> Credentials | None:
        """Read both from files (`server_key` may be the 40 characters too); None where neither is given.

        Raises
        ------
        ScannerError
            Only one is given, or a file is missing, open to others or no key.
        """
        if not server_key and not key:
            return None
        if not server_key or not key:
            raise UsageError("CURVE needs the daemon's public key and a key of your own.", "Give both.")
        return cls(read_public(server_key), read_pair(Path(key)))


class Keyring:
    """The daemon's keys.

    Parameters
    ----------
    folder : Path
        See the module.
    environment : mapping, optional
        Where systemd says that it put credentials (`CREDENTIALS_DIRECTORY`); the process's own when omitted.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.folder = folder
        self._credentials = environment.get("CREDENTIALS_DIRECTORY")

    def server(self) -> Pair:
        """Return the daemon's pair: systemd's credential `server.key_secret`, else the file of that name.

        Raises
        ------
        ScannerError
            There is none, or others than its owner may read the file.
        """
        name = f"{SERVER}.key_secret"
        if self._credentials and (given := Path(self._credentials) / name).exists():
            return _pair(given)  # systemd guards it: a private mount, whose access list shows as a group's right
        return read_pair(self.folder / name)

    def allowed(self) -> dict[bytes, str]:
        """Return public key -> name of everyone who may connect.

        Raises
        ------
        ScannerError
            The folder cannot be read, or others may write there.
        """
        folder = self.folder / "allowed"
        _refuse_writable(folder)
        return {read_public(path): path.stem for path in sorted(folder.glob("*.key"))}


def new(folder: Path, name: str) -> Pair:
    """Make a pair: `NAME.key` to give away and `NAME.key_secret`, readable by its owner only.

    Raises
    ------
    UsageError
        There is a key of that name, or the name is no plain file name.
    """
    secret = folder / f"{_checked(name)}.key_secret"
    public = folder / f"{name}.key"
    if secret.exists() or public.exists():
        raise UsageError(f"{folder} has a key {name!r} already.", "Choose another name, or remove the files first.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    with tempfile.TemporaryDirectory(dir=folder) as private:
        zmq.auth.create_certificates(private, name)
        (Path(private) / secret.name).chmod(0o600)
        (Path(private) / public.name).chmod(0o644)
        (Path(private) / secret.name).rename(secret)
        (Path(private) / public.name).rename(public)
    return read_pair(secret)


def allow(folder: Path, name: str, public: bytes) -> Path:
    """Let the holder of a public key connect from now on; the same name again replaces its key."""
    path = folder / "allowed" / f"{_checked(name)}.key"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = path.with_suffix(".new")
    fresh.write_text(f'metadata\n    name = "{name}"\ncurve\n    public-key = "{public.decode()}"\n', encoding="ascii")
    fresh.chmod(0o644)
    return fresh.rename(path)


def revoke(folder: Path, name: str) -> None:
    """End that name's permission; a daemon that runs cuts its connections within a second or two.

    Raises
    ------
    NotFoundError
        Nobody of that name is allowed.
    """
    try:
        (folder / "allowed" / f"{_checked(name)}.key").unlink()
    except FileNotFoundError as error:
        raise NotFoundError(f"Nobody named {name!r} is allowed.", "See edge-scanner keys list.") from error


def read_public(source: Path | str) -> bytes:
    """Return the public key in a file, or the 40 characters themselves.

    Raises
    ------
    ScannerError
        Neither a file with a key nor a key.
    """
    if isinstance(source, str) and _Z85.fullmatch(source.encode(errors="replace")):
        return source.encode()
    return _read(Path(source))[0]


def read_pair(path: Path) -> Pair:
    """Return the pair in a `.key_secret` file.

    Raises
    ------
    ScannerError
        No such file, no secret key in it, or others than its owner may read it.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ScannerError(
            f"The key {path} cannot be read ({error.strerror}).", "Make one with edge-scanner keys new."
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ScannerError(f"Others may read the secret key {path}.", f"chmod 600 {path}, or make a new key.")
    return _pair(path)


def _pair(path: Path) -> Pair:
    public, secret = _read(path)
    if secret is None:
        raise ScannerError(f"{path} has no secret key.", "Name the file that ends in .key_secret.")
    if zmq.curve_public(secret) != public:
        raise ScannerError(f"The two keys in {path} are no pair.", "Make a new one with edge-scanner keys new.")
    return Pair(public, secret)


def _read(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise ScannerError(f"The key {path} cannot be read.", "Check the name and its permissions.") from error
    except ValueError as error:
        raise ScannerError(f"{path} holds no key.") from error
    if not all(_Z85.fullmatch(key) for key in (public, secret) if key is not None):
        raise ScannerError(f"{path} holds no key of 40 characters.")
    return public, secret


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a key.", "Use letters, digits and . _ @ -, 64 at most.")
    return name


def _refuse_writable(folder: Path) -> None:
    try:
        status = folder.stat()
    except FileNotFoundError as error:
        raise ScannerError(
            f"There is no folder {folder}, so nobody could connect.", "Run edge-scanner keys allow."
        ) from error
    except OSError as error:
        raise ScannerError(f"The folder {folder} cannot be read ({error.strerror}).") from error
    if stat.S_IMODE(status.st_mode) & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise ScannerError(f"Others may put keys into {folder}.", f"chown root {folder} and chmod 755 {folder}.")
