"""How well the overlaps agree: loops that should close, and `registration.svg`, the residual of every pair on a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_scanner.geometry import MosaicFrame
from edge_scanner.plan import ScanPlan
from edge_scanner.record import TileRecord
from edge_scanner.register import Pair
from edge_scanner.register.strips import nominal_step

Vector = tuple[float, float]

SIDE = 900
ARROW = 0.4
"""Length of the arrow that 95 % of the residuals stay below, in steps between tiles."""
LONGEST = 60.0
"""Arrows that would be longer are cut off there."""
MOST_PAIRS = 20_000
"""A slide of more pairs shows every n-th."""
USED, LEFT_OUT, EMPTY = "#176d2f", "#c02020", "#cccccc"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Figures of the pairs.

    Parameters
    ----------
    pairs, used : int
    closure_px : ndarray
        For each four tiles around a corner, how far the four measured shifts, one after the other, end from where they
        began.
    """

    pairs: int
    used: int
    closure_px: np.ndarray[tuple[int], np.dtype[np.float64]]


def agreement(pairs: Sequence[Pair], plan: ScanPlan, frame: MosaicFrame) -> Agreement:
    """Return the figures of a scan's pairs; only trusted ones take part in loops."""
    shifts = {(p.first, p.second): _measured(p, plan, frame) for p in pairs if p.match.trusted}
    at = plan.index_at
    gaps = []
    for row in range(plan.rows - 1):
        for col in range(plan.cols - 1):
            a, b, c, d = at(row, col), at(row, col + 1), at(row + 1, col), at(row + 1, col + 1)
            loop = [shifts.get(edge) for edge in ((a, b), (b, d), (a, c), (c, d))]
            if None not in loop:
                there, on, down, across = (np.array(shift) for shift in loop)
                gaps.append(float(np.hypot(*(there + on - down - across))))
    return Agreement(len(pairs), sum(p.used for p in pairs), np.array(gaps))


def write_svg(
    path: Path, pairs: Sequence[Pair], plan: ScanPlan, frame: MosaicFrame, records: Sequence[TileRecord]
) -> None:
    """Write the map, whole or not at all.

    An arrow goes from the middle of an overlap the way that its measurement would move the second tile, magnified. A
    red one was left out of the solve; a grey dot is an overlap that shows nothing to measure.
    """
    places = {r.tile.index: (r.placed.y_px, r.placed.x_px) for r in records if r.placed}
    scale = SIDE / max(frame.height_px, frame.width_px)
    height, width = (math.ceil(side * scale) for side in (frame.height_px, frame.width_px))
    tile = f'width="{plan.tile_width_px * scale:.1f}" height="{plan.tile_height_px * scale:.1f}"'
    tiles = "".join(f'<rect x="{x * scale:.1f}" y="{y * scale:.1f}" {tile}/>' for y, x in places.values())
    shown = pairs[:: max(1, math.ceil(len(pairs) / MOST_PAIRS))]
    residuals = [_residual(p, places, plan, frame) if p.match.trusted else None for p in shown]
    kept = [math.hypot(*r) for p, r in zip(shown, residuals, strict=True) if p.used and r]
    unit = max(float(np.percentile(kept, 95)) if kept else 1.0, 0.01)
    length = ARROW * (min(plan.tile_height_px, plan.tile_width_px) - plan.overlap_px) * scale
    marks = []
    for pair, residual in zip(shown, residuals, strict=True):
        (ya, xa), (yb, xb) = places[pair.first], places[pair.second]
        middle = (ya + yb + plan.tile_height_px) / 2 * scale, (xa + xb + plan.tile_width_px) / 2 * scale
        marks.append(_dot(middle, EMPTY) if residual is None else _arrow(middle, residual, length / unit, pair.used))
    text = f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 24}" \
viewBox="0 0 {width} {height + 24}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
<g fill="none" stroke="#ddd">{tiles}</g><g stroke-width="1.5">{"".join(marks)}</g>
<line x1="8" x2="{8 + length:.1f}" y1="{height + 12}" y2="{height + 12}" stroke="{USED}" stroke-width="1.5"/>
<text x="{16 + length:.1f}" y="{height + 16}">{unit:.3f} px (green: used, red: left out, grey: nothing to see)</text>
</svg>
"""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _arrow(at: Vector, residual: Vector, zoom: float, used: bool) -> str:
    colour, length = USED if used else LEFT_OUT, zoom * math.hypot(*residual)
    zoom *= min(1.0, LONGEST / length) if length else 1.0
    end = f'x2="{at[1] + zoom * residual[1]:.1f}" y2="{at[0] + zoom * residual[0]:.1f}"'
    return f'<line x1="{at[1]:.1f}" y1="{at[0]:.1f}" {end} stroke="{colour}"/>{_dot(at, colour)}'


def _dot(at: Vector, colour: str) -> str:
    return f'<circle cx="{at[1]:.1f}" cy="{at[0]:.1f}" r="1.8" fill="{colour}"/>'


def _measured(pair: Pair, plan: ScanPlan, frame: MosaicFrame) -> Vector:
    """Return the measured displacement (y, x), px, from the first tile's corner to the second's."""
    dy, dx = nominal_step(frame, plan.target(pair.first), plan.target(pair.second))
    return dy + pair.match.dy_px, dx + pair.match.dx_px


def _residual(pair: Pair, places: Mapping[int, Vector], plan: ScanPlan, frame: MosaicFrame) -> Vector:
    (ya, xa), (yb, xb) = places[pair.first], places[pair.second]
    dy, dx = _measured(pair, plan, frame)
    return dy - (yb - ya), dx - (xb - xa)
