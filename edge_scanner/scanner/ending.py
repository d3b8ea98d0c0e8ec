"""How a slide's build ends, whoever fed it: its figures measured, its report written, its outcome noted."""

from __future__ import annotations

from dataclasses import replace

from edge_scanner.buffer import TileBuffer
from edge_scanner.report import ScanReport, write_report
from edge_scanner.report.report import Run, save
from edge_scanner.scanner import settling
from edge_scanner.scanner.build import SlideBuild
from edge_scanner.state import Outcome
from edge_scanner.store.shard import disk_errors
from edge_scanner.tile import Tile

PATHS = {"store": "slide.ome.zarr", "tiff": "slide.ome.tif", "report": "report.json", "thumbnail": "thumbnail.png"}


def measure(
    build: SlideBuild, tiles: TileBuffer[Tile], outcome: Outcome, *, wall_s: float, scan_s: float
) -> ScanReport:
    """Measure a finished build and write its report; see `write_report`."""
    summary = build.registrar.summary()
    run = Run(
        scan_id=build.scan_id,
        outcome=outcome.value,
        wall_s=wall_s,
        scan_s=scan_s,
        stall_s=tiles.stall_s,
        buffer_high_bytes=tiles.high_water_bytes,
        coverage=build.mosaic.coverage,
        residual_px=(summary.residual_px_p50, summary.residual_px_p95),
        lost_steps=summary.lost_steps,
        pairs=build.registrar.pairs,
        settled_tiles=build.settled_tiles,
        memory=build.memory.samples,
    )
    records = build.records.all()
    with disk_errors(build.folder):
        return write_report(
            build.folder, run, build.config, build.plan, build.frame, build.store, records, build.timings
        )


def conclude(build: SlideBuild, report: ScanReport, outcome: Outcome, wall_s: float) -> ScanReport:
    """Save the report with what is known last, note the outcome, and return the report with absolute paths."""
    paths = {name: path if (build.folder / path).exists() else None for name, path in PATHS.items()}
    report = replace(report, outcome=outcome.value, paths=paths, wall_s=round(wall_s, 3))
    with disk_errors(build.folder):
        save(build.folder, report)
    build.journal.note("outcome", outcome.value)
    settling.discard(build.folder)
    root = build.folder.resolve()
    return replace(report, paths={name: str(root / path) if path else None for name, path in paths.items()})
