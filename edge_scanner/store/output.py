"""Where a command may write to: never over anything else, and never into what it reads."""

from __future__ import annotations

import os
from pathlib import Path

from edge_scanner.errors import UsageError


def refuse_existing(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it may be replaced: another OME-Zarr than the source.

    Raises
    ------
    UsageError
        `out` exists without `overwrite`, is or holds the source, or is no OME-Zarr.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"The output {out} exists.", "Give another name or --overwrite.")
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise UsageError(f"The output {out} is the source, or holds it.", "Give another name.")
    if not (out / "zarr.json").is_file():
        raise UsageError(f"The output {out} is no OME-Zarr, so it is not replaced.", "Give another name.")


def refuse_inside(out: Path, source: Path) -> None:
    """Refuse an output within its source, or whose unfinished form is the source: that is only read.

    Raises
    ------
    UsageError
    """
    read = source.resolve()
    if read in out.resolve().parents:
        raise UsageError(f"The output {out} lies within the source {source}.", "Write it somewhere else.")
    if read == out.resolve().with_name(out.name + ".partial"):
        raise UsageError(f"The source {source} is what {out} is written as first.", "Give another name.")
