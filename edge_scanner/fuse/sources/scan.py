"""A scan of this project that kept its tiles: fused again, it gives its own mosaic bit for bit."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from edge_scanner import config as configs
from edge_scanner.calibrate.axes import StageAxes
from edge_scanner.calibrate.frame import frame_of
from edge_scanner.errors import ScannerError, SourceError
from edge_scanner.fuse.sources.tile_set import ScanFrame, TileSet, shifted
from edge_scanner.fuse.tiles import TileFile
from edge_scanner.journal import read_only
from edge_scanner.mosaic.mosaic import along_line, doubt_px, margin_px, reach_of
from edge_scanner.plan import ScanPlan
from edge_scanner.store import SlideStore, make_codec
from edge_scanner.tile import Verdict


def read(folder: Path) -> TileSet:
    """Read plan, configuration and journal of a scan.

    Raises
    ------
    SourceError
        The scan did not keep its tiles, or its files cannot be read.
    """
    if not (folder / "tiles").is_dir():
        raise SourceError("This scan did not keep its tiles.", "Scan with scan.keep_tiles = true.")
    try:
        told = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
        plan = ScanPlan.from_dict(told["plan"])
        config = configs.parse({key: value for key, value in told["config"].items() if key not in ("control", "log")})
        metadata = SlideStore.open(folder / "slide.ome.zarr").metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ScannerError) as error:
        raise SourceError(
            f"The scan in {folder} cannot be read ({error}).", "Check its scan.json and store."
        ) from error
    rows, axes = _journal(folder / "journal.sqlite")
    frame = frame_of(plan, axes)
    margin = margin_px(config.stage_error_um, plan.pixel_size_um, registration=config.mosaic.registration)
    reach = reach_of(plan, frame, margin)
    placed = [row for row in rows if row["verdict"] != Verdict.REJECTED]
    if any(row["place_x_px"] is None for row in placed):
        raise SourceError("The scan is unfinished: not all of its tiles have a place.", "Finish it with scan --resume.")
    mosaic = config.mosaic
    return TileSet(
        tuple(TileFile.of(folder / "tiles" / f"{row['idx']:06d}.tif") for row in placed),
        tuple(shifted(row["place_x_px"], row["place_y_px"]) for row in placed),
        plan.pixel_size_um,
        folder / "scan.json",
        ScanFrame(
            frame.canvas,
            tuple(along_line(reach[row["idx"]], frame.canvas) for row in placed),
            config.fill_value,
            mosaic.feather_px,
            mosaic.placement == "cubic",
            mosaic.blend,
            tuple(doubt_px(Verdict(row["verdict"]), row["residual_px"]) for row in placed),
            mosaic.chunk_px,
            make_codec(config),
            metadata,
        ),
        tuple(row.get("gain", 1.0) for row in placed),  # scans of earlier versions have none
    )


def _journal(path: Path) -> tuple[list[dict[str, Any]], StageAxes | None]:
    """Return the targets, and the stage's axes that the scan was placed with; None for the nominal ones."""
    try:
        db = read_only(path)
        try:
            cursor = db.execute("SELECT * FROM tile ORDER BY idx")
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
            noted = db.execute("SELECT value FROM scan WHERE key = 'stage_axes'").fetchone()
            axes = json.loads(noted[0])["axes"] if noted else None
            return rows, StageAxes(**axes) if axes else None
        finally:
            db.close()
    except sqlite3.Error as error:
        raise SourceError(f"The journal of the scan cannot be read ({error}).") from error
