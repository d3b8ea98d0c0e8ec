"""Commands that turn files into files, or look at them: `export`, `rechunk`, `audit`."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from edge_scanner.cli.output import EXIT_FAILED, print_json, print_rows, progress
from edge_scanner.errors import UsageError

OVERWRITE = typer.Option(False, "--overwrite", help="Replace an existing OUT.")
JSON = typer.Option(False, "--json", help="Print JSON.")
CHILD_NICE = 5


def export(
    source: Path = typer.Argument(..., metavar="SRC.ome.zarr"),
    out: Path = typer.Argument(..., metavar="OUT.ome.tif"),
    compression: str = typer.Option("keep", "--compression", help="keep, jpeg, zlib, zstd or none."),
    quality: int | None = typer.Option(None, "--quality", min=1, max=100, help="Of jpeg."),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
    parent: int = typer.Option(0, "--parent", hidden=True, help="End with that process, which started this one."),
) -> None:
    """Write a pyramidal OME-TIFF; `keep` copies the stored chunks byte for byte."""
    from edge_scanner.export import to_ome_tiff

    if parent:
        _end_with(parent)
        _yield_to_others()
    with _share("exporting", wanted=not as_json) as show:
        report = to_ome_tiff(source, out, compression=compression, quality=quality, overwrite=overwrite, progress=show)
    _show(report, as_json)


def rechunk(
    source: Path = typer.Argument(..., metavar="SRC.ome.zarr"),
    out: Path = typer.Argument(..., metavar="OUT.ome.zarr"),
    chunk: str = typer.Option(..., "--chunk", metavar="N[,N...]", help="Side of a chunk, px; one, or one a level."),
    memory_mb: float = typer.Option(256.0, "--memory-mb", min=1.0, help="Bound of the memory used."),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """Write a store with other chunks, within a memory bound."""
    from edge_scanner.rechunk import rechunk as rechunk_store

    try:
        sides = [int(side) for side in chunk.split(",")]
    except ValueError:
        raise UsageError(f"--chunk {chunk!r} is not a list of whole numbers.", "256, or 512,512,256.") from None
    with _share("rechunking", wanted=not as_json) as show:
        report = rechunk_store(source, out, chunk=sides, memory_mb=memory_mb, overwrite=overwrite, progress=show)
    _show(report, as_json)


def audit(
    path: Path = typer.Argument(..., help="An OME-TIFF, an OME-Zarr or a scan's folder."),
    fix: Path | None = typer.Option(None, "--fix", metavar="OUT", help="Write a copy without personal data."),
    as_json: bool = JSON,
) -> None:
    """Check metadata: required fields, pixel size, levels, no personal data; exit 1 on a finding."""
    from edge_scanner import audit as audits

    findings = audits.audit(path) if fix is None else audits.fix(path, fix)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(f"{f.severity} {f.code}", f"{f.where}: {f.message}") for f in findings]
        print_rows("", rows or [("clean", str(fix or path))])
    if findings:
        raise typer.Exit(EXIT_FAILED)


def _end_with(parent: int) -> None:
    """Let this process be killed when that one ends, which started it: nobody would wait for the result."""
    set_death_signal = 1  # prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        raise typer.Exit(EXIT_FAILED)


def _yield_to_others() -> None:
    """Run below normal priority, whatever was inherited: the daemon that started this must be able to stop a stage."""
    os.setpriority(os.PRIO_PROCESS, 0, max(CHILD_NICE, os.getpriority(os.PRIO_PROCESS, 0)))


@contextmanager
def _share(title: str, *, wanted: bool) -> Iterator[Callable[[float], None]]:
    with progress(title, wanted=wanted) as show:
        yield lambda share: show(share, "")


def _show(report: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
    else:
        print_rows("", [(key, str(value)) for key, value in asdict(report).items()])
