"""The command `edge-scanner`: exit codes 0 done, 1 failed, 2 wrong usage, 3 cancelled."""

from __future__ import annotations

import logging
import os
import sys

import typer

from edge_scanner import __version__
from edge_scanner.cli import calibrate, check, ctl, daemon, demo, files, focus, fuse, keys
from edge_scanner.cli.output import EXIT_CANCELLED, EXIT_FAILED, EXIT_USAGE, complain
from edge_scanner.errors import ScannerError, UsageError

app = typer.Typer(
    name="edge-scanner",
    help="Whole-slide microscope scanner: scan, focus, stitch into a pyramid while scanning, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""The root of typer's usage errors, which typer itself does not name."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edge-scanner {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version_wanted: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Whole-slide microscope scanner."""


app.command()(demo.demo)
app.command()(daemon.run)
app.command()(check.check)
app.command()(files.export)
app.command()(fuse.fuse)
app.add_typer(ctl.app, name="ctl")
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(keys.app, name="keys")
app.add_typer(focus.app, name="focus")


def main() -> int:
    """Run the command line and return its exit code; no traceback for anything that was foreseen."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
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
