"""Which folder a command may write a store to: never one that holds anything else."""

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
