"""The report of one scan: figures from the records, the store and, on the simulator, the specimen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_scanner.config import Config
from edge_scanner.drift import followed, largest_change
from edge_scanner.geometry import Box, MosaicFrame
from edge_scanner.memory import peak_rss_mib
from edge_scanner.mosaic.source import Source, place, resampled
from edge_scanner.plan import ScanPlan
from edge_scanner.record import TileRecord, Timings
from edge_scanner.register import LostSteps, Pair
from edge_scanner.report.page import write_page
from edge_scanner.report.picture import write_thumbnail
from edge_scanner.report.quality import Quality, measure
from edge_scanner.report.registration import agreement, write_svg
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.store import SlideStore
from edge_scanner.tile import Pixels, Verdict

AROUND_PX = 1 << 20
"""Glass around the specimen that its comparison with the mosaic may reach into."""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """`report.json`; the keys are public, see README.

    Times: `wall_s` is real; `scan_s` and `mechanical_s` are on the clock of the scan (virtual in the simulator, unless
    set otherwise).
    """

    scan_id: str
    outcome: str
    tiles: int
    accepted: int
    blank: int
    rejected: int
    frames_per_tile: float | None
    in_focus_share: float | None
    coverage: float
    holes: list[dict[str, Any]]
    seam_step: float | None
    registration_px_p50: float | None
    registration_px_p95: float | None
    registration_pairs: int
    registration_used_share: float | None
    loop_closure_px_p50: float | None
    loop_closure_px_p95: float | None
    registered_tiles: int
    placed_by_stage: int
    lost_steps: list[dict[str, Any]]
    settled_tiles: int | None
    gain_min: float | None
    gain_max: float | None
    glass_updates: int
    glass_drift: float
    truth_px_p50: float | None
    truth_px_p95: float | None
    psnr_db: float | None
    wall_s: float
    scan_s: float
    mechanical_s: float
    peak_rss_mib: float
    stall_s: float
    buffer_high_mib: float
    limit: str
    stages: dict[str, dict[str, float]]
    paths: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """What the scanner measured of a run; `memory` is (real seconds, MiB resident)."""

    scan_id: str
    outcome: str
    wall_s: float
    scan_s: float
    stall_s: float
    buffer_high_bytes: int
    coverage: float
    residual_px: tuple[float, float]
    memory: tuple[tuple[float, float], ...] = ()
    lost_steps: tuple[LostSteps, ...] = ()
    pairs: tuple[Pair, ...] = ()
    settled_tiles: int | None = None


def write_report(
    folder: Path,
    run: Run,
    config: Config,
    plan: ScanPlan,
    frame: MosaicFrame,
    store: SlideStore,
    records: list[TileRecord],
    timings: Timings,
) -> ScanReport:
    """Measure the scan, write its report into its folder, and return it.

    Files: `thumbnail.png`, `registration.svg`, `report.html` and `report.json`.

    Raises
    ------
    StoreError
        When the store cannot be read back or the folder not be written.
    """
    report = build_report(run, config, plan, frame, store, records, timings)
    write_svg(folder / "registration.svg", run.pairs, plan, frame, records)
    write_thumbnail(store, folder / "thumbnail.png")
    write_page(folder, report, plan, records, run.memory)
    save(folder, report)
    return report


def save(folder: Path, report: ScanReport) -> None:
    """Write `report.json`, whole or not at all."""
    partial = folder / "report.json.partial"
    partial.write_text(json.dumps(asdict(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / "report.json")


def build_report(
    run: Run,
    config: Config,
    plan: ScanPlan,
    frame: MosaicFrame,
    store: SlideStore,
    records: list[TileRecord],
    timings: Timings,
) -> ScanReport:
    """Return the report's figures; see `write_report`."""
    by = {verdict: [r for r in records if r.tile.verdict is verdict] for verdict in Verdict}
    focused = [r.tile.focus for r in by[Verdict.ACCEPTED] if r.tile.focus]
    tested = config.focus.mode != "off"
    placed = [r for r in records if r.placed and r.tile.verdict is not Verdict.REJECTED]
    registered = [r for r in placed if r.placed and r.placed.registered]
    agreed = agreement(run.pairs, plan, frame)
    gains = [r.placed.gain for r in placed if r.placed]
    light = followed([r.tile for r in by[Verdict.BLANK]], plan.rows - 1)
    quality = _quality(config, plan, frame, store, placed)
    truth = truth_errors_px(plan, true_axes(config, frame), registered or placed)
    mechanical_s = timings.total_ms("move", "settle", "expose") / 1000
    return ScanReport(
        scan_id=run.scan_id,
        outcome=run.outcome,
        tiles=len(plan),
        accepted=len(by[Verdict.ACCEPTED]),
        blank=len(by[Verdict.BLANK]),
        rejected=len(by[Verdict.REJECTED]) + len(plan) - len(records),
        frames_per_tile=_round(np.mean([f.frames for f in focused])) if focused else None,
        in_focus_share=_round(np.mean([f.in_focus for f in focused]), 4) if focused and tested else None,
        coverage=round(run.coverage, 6),
        holes=[_hole(r, plan, frame) for r in by[Verdict.REJECTED]],
        seam_step=_round(quality.seam_step),
        registration_px_p50=_round(run.residual_px[0], 4),
        registration_px_p95=_round(run.residual_px[1], 4),
        registration_pairs=agreed.pairs,
        registration_used_share=round(agreed.used / agreed.pairs, 4) if agreed.pairs else None,
        loop_closure_px_p50=_round(np.percentile(agreed.closure_px, 50), 4) if agreed.closure_px.size else None,
        loop_closure_px_p95=_round(np.percentile(agreed.closure_px, 95), 4) if agreed.closure_px.size else None,
        registered_tiles=len(registered),
        placed_by_stage=len(placed) - len(registered),
        lost_steps=[_lost(lost, plan) for lost in run.lost_steps],
        settled_tiles=run.settled_tiles,
        gain_min=_round(min(gains), 4) if gains else None,
        gain_max=_round(max(gains), 4) if gains else None,
        glass_updates=len(light),
        glass_drift=round(largest_change(light), 4),
        truth_px_p50=_round(np.percentile(truth, 50), 4) if truth.size else None,
        truth_px_p95=_round(np.percentile(truth, 95), 4) if truth.size else None,
        psnr_db=_round(quality.psnr_db),
        wall_s=round(run.wall_s, 3),
        scan_s=round(run.scan_s, 3),
        mechanical_s=round(mechanical_s, 3),
        peak_rss_mib=round(peak_rss_mib(), 1),
        stall_s=round(run.stall_s, 3),
        buffer_high_mib=round(run.buffer_high_bytes / 2**20, 1),
        limit="mosaic and store" if run.stall_s > 0.1 * run.wall_s else "stage, camera and focus",
        stages=timings.summary(),
    )


def true_axes(config: Config, frame: MosaicFrame) -> MosaicFrame:
    """Return the frame with the matrix that the simulated camera really has: mirrored in x, then turned."""
    if config.camera.driver != "sim":
        return frame
    angle, k = math.radians(config.sim.rotation_deg), 1 / frame.pixel_size_um
    cos, sin, sign = math.cos(angle) * k, math.sin(angle) * k, -1 if config.sim.mirror else 1
    return replace(frame, xx=sign * cos, xy=sign * sin, yx=-sin, yy=cos)


def truth_errors_px(plan: ScanPlan, frame: MosaicFrame, records: list[TileRecord]) -> np.ndarray[Any, Any]:
    """Return, for each pair of grid neighbours, how far their offset is from the true one in that frame, pixels.

    Empty where the rig does not know the true positions.
    """
    errors: dict[tuple[int, int], tuple[float, float]] = {}
    for r in records:
        if r.placed and r.tile.truth:
            true = frame.tile_corner(r.tile.truth.x_um, r.tile.truth.y_um, plan.tile_height_px, plan.tile_width_px)
            errors[r.tile.row, r.tile.col] = (r.placed.y_px - true[0], r.placed.x_px - true[1])
    pairs = [
        math.dist(error, errors[other])
        for (row, col), error in errors.items()
        for other in ((row + 1, col), (row, col + 1))
        if other in errors
    ]
    return np.array(pairs)


def _quality(
    config: Config, plan: ScanPlan, frame: MosaicFrame, store: SlideStore, placed: list[TileRecord]
) -> Quality:
    size = (plan.tile_height_px, plan.tile_width_px)
    boxes = [place(r.placed.y_px, r.placed.x_px, *size, cubic=False)[0] for r in placed if r.placed]
    full_scale = float(np.iinfo(store.dtype).max)
    offset = _offset_px(plan, frame, placed)
    return measure(store, frame.canvas, boxes, _truth(config, frame, offset), full_scale)


def _offset_px(plan: ScanPlan, frame: MosaicFrame, placed: list[TileRecord]) -> tuple[float, float]:
    """Return (y, x), how far the whole mosaic lies from the specimen: no scanner can know it from its images."""
    errors = [
        (r.placed.y_px - true[0], r.placed.x_px - true[1])
        for r in placed
        if r.placed and r.tile.truth
        for true in [frame.tile_corner(r.tile.truth.x_um, r.tile.truth.y_um, plan.tile_height_px, plan.tile_width_px)]
    ]
    y, x = np.median(errors, axis=0) if errors else (0.0, 0.0)
    return float(y), float(x)


def _truth(config: Config, frame: MosaicFrame, offset: tuple[float, float]) -> Callable[[Box], Pixels] | None:
    """Return how to read the specimen on the mosaic's lattice; None where it is not known or not comparable."""
    sim, camera = config.sim, config.camera
    straight = not sim.mirror and sim.rotation_deg == sim.scale_error == 0
    comparable = (camera.channels, camera.bits) == (3, 8) and straight
    if camera.driver != "sim" or not comparable or not config.illumination.brightfield:
        return None
    specimen = open_specimen(sim, frame.pixel_size_um)
    y = offset[0] - frame.origin_y_um / frame.pixel_size_um
    x = offset[1] - frame.origin_x_um / frame.pixel_size_um
    box, shift = place(y - AROUND_PX, x - AROUND_PX, 4 * AROUND_PX, 4 * AROUND_PX, cubic=True)

    def crop(part: Box) -> Pixels:
        return specimen.read(part.y0 - AROUND_PX, part.x0 - AROUND_PX, part.height, part.width)

    source = Source(0, box, box, shift, crop)
    return lambda part: resampled(source, part)


def _hole(record: TileRecord, plan: ScanPlan, frame: MosaicFrame) -> dict[str, Any]:
    tile, size = record.tile, (plan.tile_height_px, plan.tile_width_px)
    y, x = (round(v) for v in frame.tile_corner(tile.position.x_um, tile.position.y_um, *size))
    return {"index": tile.index, "row": tile.row, "col": tile.col, "y_px": y, "x_px": x, "reason": tile.reason}


def _lost(lost: LostSteps, plan: ScanPlan) -> dict[str, Any]:
    target = plan.target(lost.index)
    return asdict(lost) | {"row": target.row, "col": target.col}


def _round(value: float | np.floating[Any] | None, digits: int = 3) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
