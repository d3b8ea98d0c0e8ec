"""The settle pass: with all tiles in, all places are solved for at once, and a store that they moved in is made anew.

In a scan a row is placed for good when three more are in. Where pieces of tissue join later than that, the whole solve
knows better. The new store is fused from the kept tiles beside the old one, and the two change names in one step, so
that at every instant there is a whole store. The old one goes when the scan's outcome is noted; until then a scan that
is gone on with takes it back.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_scanner import store as stores
from edge_scanner.errors import ScannerError, StoreError
from edge_scanner.mosaic.mosaic import doubt_px
from edge_scanner.spool import sync_filesystem
from edge_scanner.tile import PlacedTile, Verdict

if TYPE_CHECKING:
    from edge_scanner.fuse.sources import TileSet
    from edge_scanner.scanner.build import SlideBuild

MOVED_PX = 0.3
"""A tile that the whole solve moves by more than this, against the others, makes a new store worth while."""
STORE = "slide.ome.zarr"
FOLDER = "settling"
MARK = ("settled", "true")
RENAME_EXCHANGE, AT_FDCWD = 2, -100

_log = logging.getLogger(__name__)


def settle(build: SlideBuild, cancelled: Callable[[], bool] = lambda: False) -> int | None:
    """Solve for all places of a finished build, and replace its store if tiles moved by more than 0.3 px.

    Memory bound: that of `fuse_slide`, with `scan.cache_mb` of tiles.

    Parameters
    ----------
    build : SlideBuild
        Complete and committed; its tiles were kept.
    cancelled : callable

    Returns
    -------
    int or None
        How many tiles moved; None where the pass was cancelled or failed, which leaves the store as it is.
    """
    before = [r.placed for r in build.records.all() if r.placed and r.tile.verdict is not Verdict.REJECTED]
    try:
        registrar, everywhere = build.solve_whole(cancelled)
        placed = [p for p in everywhere if p.verdict is not Verdict.REJECTED]
        if not (moved := moved_tiles(before, placed)):
            return 0
        _fuse(build, placed, cancelled)
        _exchange(build.folder)
    except ScannerError as error:
        undo(build.folder)  # the sync after the exchange may be what failed
        _log.warning("The settle pass was given up: %s", error)
        return None
    build.store.close()
    build.store, build.registrar = stores.open(build.folder / STORE), registrar
    for place in placed:
        build.records.place(place)
        build.journal.place(place)
    build.journal.commit()
    return moved


def moved_tiles(before: list[PlacedTile], after: list[PlacedTile]) -> int:
    """Return how many tiles moved by more than 0.3 px; a shift that all share is none."""
    if not after:
        return 0
    shifts = np.array([[b.y_px - a.y_px, b.x_px - a.x_px] for a, b in zip(before, after, strict=True)])
    return int((np.hypot(*(shifts - np.median(shifts, axis=0)).T) > MOVED_PX).sum())


def undo(folder: Path) -> None:
    """Bring the store of an unfinished scan back that a settle pass replaced; its journal speaks of that one."""
    if (folder / FOLDER / STORE).exists() and MARK in stores.open(folder / STORE).metadata.settings.items():
        _exchange(folder)
    discard(folder)


def discard(folder: Path) -> None:
    """Remove what a settle pass has left: a store that was replaced, or one that was not finished."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _fuse(build: SlideBuild, placed: list[PlacedTile], cancelled: Callable[[], bool]) -> None:
    from edge_scanner.fuse.slide import fuse_slide  # only here: the memory of Dask is for who wants this pass
    from edge_scanner.fuse.sources import open_source

    tiles = _moved(open_source(build.folder), placed)
    out = build.folder / FOLDER / STORE
    fuse_slide(tiles, out, memory_mb=build.config.scan.cache_mb, overwrite=True, cancelled=cancelled)


def _moved(tiles: TileSet, placed: list[PlacedTile]) -> TileSet:
    from edge_scanner.fuse.sources.tile_set import shifted

    assert tiles.scan is not None
    metadata = replace(tiles.scan.metadata, settings={**tiles.scan.metadata.settings, MARK[0]: MARK[1]})
    doubts = tuple(doubt_px(place.verdict, place.residual_px) for place in placed)
    return replace(
        tiles,
        transforms=tuple(shifted(place.x_px, place.y_px) for place in placed),
        gains=tuple(place.gain for place in placed),
        scan=replace(tiles.scan, metadata=metadata, doubts_px=doubts),
    )


def _exchange(folder: Path) -> None:
    """Let the scan's store and the one in the making change names, in one step (`renameat2(2)`).

    Raises
    ------
    StoreError
        When the file system cannot do that.
    """
    sync_filesystem(folder)
    one, other = (os.fsencode(path) for path in (folder / STORE, folder / FOLDER / STORE))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) != 0:
        why = os.strerror(ctypes.get_errno())
        raise StoreError(f"The settled store could not take its place ({why}).", "Keep scans on ext4, XFS or Btrfs.")
    sync_filesystem(folder)
