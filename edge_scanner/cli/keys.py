"""`keys`: CURVE keys for TCP endpoints; a running daemon follows without a restart."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_scanner.cli.output import print_json, print_rows
from edge_scanner.control import keys
from edge_scanner.errors import UsageError

app = typer.Typer(help="CURVE keys for TCP endpoints.", no_args_is_help=True)

FOLDER = typer.Option(Path("/etc/edge-scanner/keys"), "--keys", help="Folder of keys; control.keys of the daemon.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command()
def new(
    name: str = typer.Argument("server", help="server: the daemon's own; else a client's."),
    folder: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Make a pair: NAME.key to give away, NAME.key_secret to keep."""
    pair = keys.new(folder, name)
    if name == keys.SERVER:
        (folder / "allowed").mkdir(mode=0o755, exist_ok=True)
    _show({"name": name, "public": pair.public.decode(), "secret_file": str(folder / f"{name}.key_secret")}, as_json)


@app.command()
def allow(
    name: str = typer.Argument(..., help="How the client is to be called in lists and logs."),
    public: str = typer.Argument(..., metavar="KEY", help="Its public key: the file, or the 40 characters."),
    folder: Path = FOLDER,
    as_json: bool = JSON,
) -> None:
    """Let the holder of a key connect, from now on."""
    key = keys.read_public(public)
    keys.allow(folder, name, key)
    _show({"name": name, "public": key.decode(), "allowed": True}, as_json)


@app.command()
def revoke(name: str, folder: Path = FOLDER, as_json: bool = JSON) -> None:
    """End a permission; connections that are open are cut within two seconds."""
    keys.revoke(folder, name)
    _show({"name": name, "allowed": False}, as_json)


@app.command(name="list")
def list_(folder: Path = FOLDER, as_json: bool = JSON) -> None:
    """Show the daemon's public key and everyone who may connect."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Make it with edge-scanner keys new.")
    server = folder / f"{keys.SERVER}.key"
    own = keys.read_public(server).decode() if server.exists() else None
    allowed = keys.Keyring(folder).allowed() if (folder / "allowed").is_dir() else {}
    if as_json:
        print_json({"server": own, "allowed": [{"name": n, "public": k.decode()} for k, n in allowed.items()]})
    else:
        rows = [(name, key.decode()) for key, name in allowed.items()]
        print_rows("", [("server", own or "no key yet: edge-scanner keys new"), *rows])


def _show(told: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(told)
    else:
        print_rows("", [(key, str(value)) for key, value in told.items()])
