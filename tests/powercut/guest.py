"""Runs inside the virtual machine: check what the last power cut left, then scan on; tell the console everything.

    guest.py (scan | check) DATA

Every line that matters begins with `@`. What the scanner claims, as soon as it claims it:

    @ opened                  the scanner begins to recover
    @ captured TILE CRC       a tile entered the slide's build
    @ durable TILE CRC        a checkpoint returned: this tile survives a power cut
    @ stored LEVEL ROW COL CHANNEL CRC     a commit returned: so does this chunk

and what really is on the disk, read before the scanner is started, without the scanner's code:

    @ journal ok
    @ have-tile TILE CRC | @ have-tile TILE chunks      its spooled frame, or all chunks that it touches
    @ have-chunk LEVEL ROW COL CHANNEL CRC
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import tifffile

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

SETTINGS = (
    *("sim.stage_error_um=3", "sim.backlash_um=2", "sim.tissue_width_mm=1.6", "sim.tissue_height_mm=1.2"),
    *("sim.noise=false", "sim.blur=false", "sim.vignetting=false", "focus.mode=off"),
    *("camera.width_px=192", "camera.height_px=144", "mosaic.codec=jpeg", "mosaic.chunk_px=256"),
)
REGION = (0.0, 0.0, 1.5, 1.1)
TILE = (144, 192)
CHUNK_PX = 256


def say(*words: object) -> None:
    """Write one line to the console, in one call."""
    os.write(1, ("@ " + " ".join(map(str, words)) + "\n").encode())


def scan_on(folder: Path) -> None:
    """Begin the scan, or go on with it, to the end; claims go to the console."""
    import kill_rig

    from edge_scanner.scanner import scan as scans

    class Told(scans.Scan):
        def __init__(self, *args: Any, **more: Any) -> None:
            self._captured: dict[int, int] = {}
            say("opened")
            super().__init__(*args, on_stored=self._tell_chunks, **more)

        def place(self, tile: Any) -> Iterator[Any]:
            if tile.pixels is not None:
                self._captured[tile.index] = zlib.crc32(tile.pixels.tobytes())
                say("captured", tile.index, self._captured[tile.index])
            yield from super().place(tile)

        def _checkpoint(self) -> None:
            super()._checkpoint()
            for index in [row["idx"] for row in self.journal.tiles() if row["idx"] in self._captured]:
                say("durable", index, self._captured.pop(index))

        def _tell_chunks(self, keys: list[tuple[int, int, int]]) -> None:
            for row in self.journal.chunks():
                if (row["level"], row["row"], row["col"]) in set(keys):
                    say("stored", row["level"], row["row"], row["col"], row["channel"], row["crc32c"])

    scans.Scan = Told
    kill_rig.SETTINGS, kill_rig.REGION = SETTINGS, REGION
    kill_rig.work(folder)
    say("digest", kill_rig.digest(folder))


def check(folder: Path) -> None:
    """Tell what the disk holds. The journal is read from a copy, so that the scanner finds it as the cut left it."""
    if not (folder / "journal.sqlite").exists():
        say("journal none")
        return
    copy = Path("/dev/shm/journal")
    copy.mkdir()
    for path in folder.glob("journal.sqlite*"):
        shutil.copy(path, copy)
    db = sqlite3.connect(copy / "journal.sqlite")
    db.row_factory = sqlite3.Row
    say("journal", *db.execute("PRAGMA integrity_check").fetchone())
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunk'").fetchone():
        return
    whole = set()
    for part in db.execute("SELECT * FROM chunk"):
        crc = chunk_crc(folder / "slide.ome.zarr" / part["shard"], part["offset"], part["length"])
        if crc is not None:
            say("have-chunk", part["level"], part["row"], part["col"], part["channel"], crc)
        if crc == part["crc32c"] and part["level"] == 0:
            whole.add((part["row"], part["col"]))
    grid = chunks_of(folder / "slide.ome.zarr" / "0" / "0" / "zarr.json")
    for tile in db.execute("SELECT * FROM tile"):
        crc = frame_crc(folder / "spool" / f"{tile['idx']:06d}.tif")
        if crc is not None and crc == tile["crc32"]:
            say("have-tile", tile["idx"], crc)
        elif tile["place_y_px"] is not None and set() < grid & touched(tile["place_y_px"], tile["place_x_px"]) <= whole:
            say("have-tile", tile["idx"], "chunks")


def chunk_crc(shard: Path, offset: int, length: int) -> int | None:
    """Return the CRC-32C of the bytes at that place; None when they are not there."""
    try:
        with shard.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError:
        return None
    return google_crc32c.value(data) if len(data) == length else None


def chunks_of(array: Path) -> set[tuple[int, int]]:
    """Return the chunks that level 0 has; none when the store is not there."""
    if not array.exists():
        return set()
    height, width = json.loads(array.read_text())["shape"][-2:]
    return {(row, col) for row in range(-(-height // CHUNK_PX)) for col in range(-(-width // CHUNK_PX))}


def frame_crc(path: Path) -> int | None:
    """Return the CRC-32 of a spooled frame's pixels; None when it cannot be read."""
    try:
        return zlib.crc32(tifffile.imread(path).tobytes())
    except (OSError, ValueError, IndexError, tifffile.TiffFileError):
        return None


def touched(y_px: float, x_px: float) -> set[tuple[int, int]]:
    """Return the chunks of level 0 that the inside of a tile at that place touches."""
    rows = range(max(0, round(y_px) // CHUNK_PX), (round(y_px) + TILE[0] - 1) // CHUNK_PX + 1)
    cols = range(max(0, round(x_px) // CHUNK_PX), (round(x_px) + TILE[1] - 1) // CHUNK_PX + 1)
    return {(row, col) for row in rows for col in cols}


if __name__ == "__main__":
    data = Path(sys.argv[2])
    check(data / "scan")
    say("checked")
    if sys.argv[1] == "scan":
        scan_on(data / "scan")
    say("end")
