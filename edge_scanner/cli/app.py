"""The command `edge-scanner`: exit codes 0 done, 1 failed, 2 wrong usage, 3 cancelled."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import typer

from edge_scanner import __version__
from edge_scanner.cli.output import EXIT_CANCELLED, EXIT_FAILED, EXIT_USAGE, complain
from edge_scanner.errors import ScannerError, UsageError
from edge_scanner.memory import return_large_blocks

COMMANDS = {
    "demo": "demo:demo",
    "run": "daemon:run",
    "ctl": "ctl:app",
    "check": "check:check",
    "calibrate": "calibrate:app",
    "fuse": "fuse:fuse",
    "export": "files:export",
    "rechunk": "files:rechunk",
    "segment": "fuse:segment",
    "focus": "focus:app",
    "keys": "keys:app",
    "audit": "files:audit",
}
"""Command -> module of this package and what it calls there; a module is imported only when its command is asked for,
so that the daemon does not carry the offline tools (dask alone is 240 MiB)."""

_WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""The root of typer's usage errors, which typer itself does not name."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edge-scanner {__version__}")
        raise typer.Exit


def _root(
    _version_wanted: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Whole-slide microscope scanner: scan, focus, stitch into a pyramid while scanning, export."""


def build(words: list[str]) -> typer.Typer:
    """Return the command line: the command that the words ask for, or all of them where they ask for none."""
    app = typer.Typer(
        name="edge-scanner", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, callback=_root
    )
    asked = next((word for word in words if not word.startswith("-")), None)
    for name in [asked] if asked in COMMANDS else COMMANDS:
        module, function = COMMANDS[name].split(":")
        command = getattr(importlib.import_module(f"edge_scanner.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main() -> int:
    """Run the command line and return its exit code; no traceback for anything that was foreseen."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    return_large_blocks()
    try:
        code = typer.main.get_command(build(sys.argv[1:])).main(standalone_mode=False)
    except typer.Abort:
        complain("Cancelled.")
        return EXIT_CANCELLED
    except _WRONG_USAGE as error:
        error.show()  # type: ignore[attr-defined]
        return EXIT_USAGE
    except ScannerError as error:
        complain(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        complain("Cancelled.")
        return EXIT_CANCELLED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        complain(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error}.")
        return EXIT_FAILED
    return code if isinstance(code, int) else 0
