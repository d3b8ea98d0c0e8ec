"""`report.html`: one self-contained page with the thumbnail, the focus map and the times."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_scanner.plan import ScanPlan
from edge_scanner.record import TileRecord
from edge_scanner.tile import Verdict

if TYPE_CHECKING:
    from edge_scanner.report.report import ScanReport

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:left;border-bottom:1px solid #e5e5e5}
td.n{text-align:right;font-variant-numeric:tabular-nums}
img,svg{max-width:100%;border:1px solid #ddd}.ok{color:#176d2f}.bad{color:#a11}
"""

_ROWS: tuple[tuple[str, str, str], ...] = (
    ("tiles", "Tiles planned", ""),
    ("accepted", "accepted", ""),
    ("blank", "blank (glass)", ""),
    ("rejected", "rejected", ""),
    ("coverage", "Coverage of the canvas", ""),
    ("in_focus_share", "Share in focus", ""),
    ("frames_per_tile", "Frames a tile", ""),
    ("seam_step", "Seam step", "grey levels"),
    ("registration_used_share", "Overlaps that registration used", ""),
    ("loop_closure_px_p95", "Loops of four overlaps close within, p95", "px"),
    ("registered_tiles", "Tiles placed by their overlaps", ""),
    ("placed_by_stage", "Tiles placed by the stage alone", ""),
    ("registration_px_p50", "Registration residual, median", "px"),
    ("registration_px_p95", "Registration residual, p95", "px"),
    ("settled_tiles", "Tiles that the settle pass moved by more than 0.3 px", ""),
    ("gain_min", "Smallest gain that made a tile as bright as its neighbours", ""),
    ("gain_max", "Largest", ""),
    ("glass_updates", "Times that the flat field was changed after glass in passing", ""),
    ("glass_drift", "by this share at most", ""),
    ("truth_px_p50", "Error against the true positions, median (simulator)", "px"),
    ("truth_px_p95", "Error against the true positions, p95 (simulator)", "px"),
    ("psnr_db", "PSNR against the specimen (simulator)", "dB"),
    ("wall_s", "Time", "s"),
    ("scan_s", "Time on the scan's clock", "s"),
    ("mechanical_s", "of it moving, settling, exposing", "s"),
    ("stall_s", "Stage waiting for the mosaic", "s"),
    ("peak_rss_mib", "Peak memory of the daemon", "MiB"),
    ("limit", "What limits the speed", ""),
)


def write_page(
    folder: Path, report: ScanReport, plan: ScanPlan, records: list[TileRecord], memory: Sequence[tuple[float, float]]
) -> None:
    """Write `report.html` into the scan's folder; `thumbnail.png` is there already."""
    picture = base64.b64encode((folder / "thumbnail.png").read_bytes()).decode()
    values = asdict(report)
    figures = "".join(
        f"<tr><td>{label}</td><td class=n>{html.escape(str(values[key]))}</td><td>{unit}</td></tr>"
        for key, label, unit in _ROWS
        if values[key] is not None
    )
    stages = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{v['p50_ms']:.1f}</td><td class=n>{v['p95_ms']:.1f}</td></tr>"
        for name, v in report.stages.items()
    )
    holes = "".join(
        f"<tr><td>row {h['row']}, column {h['col']}</td><td>{html.escape(str(h['reason']))}</td></tr>"
        for h in report.holes[:200]
    )
    lost = "".join(f"<li>{_told(step)}</li>" for step in report.lost_steps[:50])
    mood = "ok" if report.outcome == "completed" and not report.holes else "bad"
    body = f"""<!doctype html><html lang=en><meta charset=utf-8><title>Scan {html.escape(report.scan_id)}</title>
<style>{_STYLE}</style><h1>Scan {html.escape(report.scan_id)}: <span class={mood}>{report.outcome}</span></h1>
<img alt="The slide" src="data:image/png;base64,{picture}">
<h2>Figures</h2><table>{figures}</table>
<h2>Verdicts</h2>{_map(plan, records, _verdict_colour)}
<p>Green: accepted. Grey: blank. Red: rejected. White: not scanned.</p>
<h2>Focus map</h2>{_focus_map(plan, records)}
<h2>Registration</h2>{(folder / "registration.svg").read_text(encoding="utf-8")}
<h2>Holes</h2>{f"<table>{holes}</table>" if holes else "<p>None.</p>"}
<h2>Lost steps</h2>{f"<ul>{lost}</ul>" if lost else "<p>None seen.</p>"}
<h2>Life of a tile, ms</h2><table><tr><th>stage</th><th>median</th><th>p95</th></tr>{stages}</table>
<h2>Memory of the daemon</h2>{memory_plot(memory, report.peak_rss_mib)}</html>
"""
    partial = folder / "report.html.partial"
    partial.write_text(body, encoding="utf-8")
    partial.replace(folder / "report.html")


def _told(step: Mapping[str, Any]) -> str:
    shift = f"{step['x_px']:.0f} px in x and {step['y_px']:.0f} px in y"
    where = f"Tile {step['index']} (row {step['row']}, column {step['col']})"
    if step["corrected"]:
        return f"{where}: from here on the stage stood {shift} off; the tiles were placed accordingly."
    return f"{where}: the stage may stand {shift} off, which too few overlaps show; tiles lie where the stage says."


def _map(plan: ScanPlan, records: list[TileRecord], colour: Callable[[TileRecord], str | None]) -> str:
    cell = max(2, min(24, 720 // max(plan.cols, plan.rows)))
    boxes = "".join(
        f'<rect x="{r.tile.col * cell}" y="{r.tile.row * cell}" width="{cell}" height="{cell}" fill="{fill}"/>'
        for r in records
        if (fill := colour(r)) is not None
    )
    width, height = plan.cols * cell, plan.rows * cell
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{boxes}</svg>'


def memory_plot(samples: Sequence[tuple[float, float]], peak_mib: float) -> str:
    """Return an SVG of (seconds, MiB resident) with the process's peak as a dashed line."""
    if len(samples) < 2:
        return "<p>Not sampled.</p>"
    end_s, top_mib = samples[-1][0], _round_up(max(peak_mib, *(mib for _, mib in samples)))
    unit, scale = ("min", 60.0) if end_s > 600 else ("s", 1.0)
    width, height, left, right = 720, 240, 64, 32

    def x(s: float) -> float:
        return left + (width - left - right) * s / max(end_s, 1e-9)

    def y(mib: float) -> float:
        return height - 32 - (height - 48) * mib / top_mib

    line = " ".join(f"{x(s):.1f},{y(mib):.1f}" for s, mib in samples)
    rows = "".join(
        f'<path d="M{left} {y(mib):.1f}H{width - right}" stroke="#e5e5e5"/>'
        f'<text x="{left - 8}" y="{y(mib) + 4:.1f}" text-anchor="end">{mib:g}</text>'
        for mib in (top_mib * k / 4 for k in range(5))
    )
    columns = "".join(
        f'<text x="{x(s):.1f}" y="{height - 12}" text-anchor="middle">{s / scale:g} {unit}</text>'
        for s in np.arange(0.0, end_s * 1.001, scale * _round_up(end_s / scale / 8))
    )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-size="12" fill="#555">{rows}'
        f'{columns}<path d="M{left} {y(peak_mib):.1f}H{width - right}" stroke="#a11" stroke-dasharray="4 3"/>'
        f'<polyline points="{line}" fill="none" stroke="#2b6cb0" stroke-width="1.5"/></svg>'
        f"<p>MiB resident while tiles came, over real time. Dashed: the most since the daemon started,"
        f" {peak_mib:.0f} MiB.</p>"
    )


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 6 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    return next(k * power for k in (1, 2, 4, 6, 8, 10) if k * power >= value)


def _verdict_colour(record: TileRecord) -> str:
    return {Verdict.ACCEPTED: "#4caf6d", Verdict.BLANK: "#d5d5d5", Verdict.REJECTED: "#d33"}[record.tile.verdict]


def _focus_map(plan: ScanPlan, records: list[TileRecord]) -> str:
    z = [r.tile.focus.z_um for r in records if r.tile.focus]
    if not z:
        return "<p>No tile was focused.</p>"
    low, high = float(np.min(z)), float(np.max(z))

    def colour(record: TileRecord) -> str | None:
        if record.tile.focus is None:
            return None
        share = (record.tile.focus.z_um - low) / max(1e-9, high - low)
        return f"hsl({240 - 200 * share:.0f} 70% {75 if not record.tile.focus.measured else 55}%)"

    text = f"<p>z from {low:.2f} um (blue) to {high:.2f} um (orange); pale: taken from the neighbours.</p>"
    return _map(plan, records, colour) + text
