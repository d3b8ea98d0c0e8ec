"""Audit of metadata: required fields, plausible pixel size, consistent levels, no personal data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edge_scanner.audit.finding import Finding
from edge_scanner.audit.ome_tiff import audit_tiff, clean_tiff
from edge_scanner.audit.ome_zarr import audit_scan, audit_zarr, clean_documents
from edge_scanner.errors import SourceError, StoreError, UsageError
from edge_scanner.store.output import refuse_inside

__all__ = ["Finding", "audit", "fix"]


def audit(path: Path | str) -> list[Finding]:
    """Return what is wrong with an OME-TIFF, an OME-Zarr or a scan folder; empty when nothing is.

    Parameters
    ----------
    path : path
        Only read.

    Raises
    ------
    SourceError
        There is no such file, or it is none of the three.
    """
    path = Path(path)
    if path.is_file():
        return list(audit_tiff(path, path.name))
    if (path / "zarr.json").is_file():
        return list(audit_zarr(path, path.name))
    if not (path / "scan.json").is_file():
        raise SourceError(f"{path} is neither an OME-TIFF, an OME-Zarr nor a scan folder.", "Check the path.")
    found = list(audit_scan(path, path.name))
    for store in sorted(path.glob("*.zarr")):
        found += audit_zarr(store, f"{path.name}/{store.name}")
    for tiff in _tiffs(path):
        found += audit_tiff(tiff, f"{path.name}/{tiff.name}")
    return found


def fix(path: Path | str, out: Path | str) -> list[Finding]:
    """Write a copy without the personal data that `audit` finds, and return what is still wrong with it.

    Texts are emptied, elements about people removed, label and macro images made white. Of a scan folder the rendered
    `report.html` is left out: it can be made again.

    Parameters
    ----------
    path : path
        Only read.
    out : path
        Must not exist; appears whole or not at all.

    Raises
    ------
    UsageError
        `out` exists, or lies within `path`.
    SourceError
        `path` is nothing that can be audited, or a label cannot be made white.
    StoreError
        `out` cannot be written.
    """
    path, out = Path(path), Path(out)
    if os.path.lexists(out):
        raise UsageError(f"The output {out} exists.", "Give another name.")
    refuse_inside(out, path)
    audit(path)
    if path.is_file():
        clean_tiff(path, out)
    else:
        _clean_folder(path, out)
    return audit(out)


def _clean_folder(path: Path, out: Path) -> None:
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.copytree(path, partial, ignore=shutil.ignore_patterns("report.html", "*.tif", "*.tiff"))
        for folder in [partial, *partial.glob("*.zarr")]:
            clean_documents(folder)
        for tiff in _tiffs(path):
            clean_tiff(tiff, partial / tiff.name)
        partial.rename(out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error}).", "Check the path and the space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tiffs(folder: Path) -> list[Path]:
    return sorted(file for pattern in ("*.tif", "*.tiff") for file in folder.glob(pattern))
