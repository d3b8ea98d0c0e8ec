"""How bright tiles are against each other: ratios on the overlaps, solved on the same graph as the places.

Lamps drift and exposures flicker; a seam shows that as a step. Glass shows it best, so pairs without texture count too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.register.pairwise import Match, common
from edge_scanner.register.solve import Link, Prior, solve

Edge = tuple[int, int]

CELL_PX = 16
LEAST_CELLS = 8
LEAST_PAIRS = 4
DARK, BRIGHT = 0.03, 0.99
"""Shares of full scale between which a cell tells the lamp's brightness."""
EVEN = 0.02
"""Scatter of the cells' ratios up to which strips that could not be aligned still tell it: glass."""
FLOOR = 1e-3
"""What a correct ratio may be wrong by, sigma: shading left over. Bounds the weight of a pair."""
LAMP = 0.015
"""How far a tile's brightness may be from the mean, sigma; draws the gains back to 1 over some fifteen tiles."""
SHADED = 0.012
SURE = 4.0
"""A ratio beyond `SHADED`, and beyond so many standard errors, that the pairs along an axis share is light that falls
askew and was not corrected; a lamp that changes so fast, and as steadily, is none."""
MOST_RATIO = 0.25
MOST_GAIN = 1.25
INDISTINGUISHABLE = 0.002
"""A gain that changes nothing by more than this share is none: half a grey level of 255."""


def with_ratio(found: Match, first: NDArray[Any], second: NDArray[Any]) -> Match:
    """Return the match with the ratio of brightness of its two strips.

    Parameters
    ----------
    found : Match
        Strips that do not match are compared as the stage placed them; only even ones then tell anything.
    first, second : ndarray, (y, x)
    """
    dy, dx = (round(found.dy_px), round(found.dx_px)) if found.trusted else (0, 0)
    own, other = (_cells(part) for part in common(first, second, dy, dx))
    full = {"uint8": 255.0, "uint16": 65535.0}.get(first.dtype.name, math.inf)
    low = DARK * full if math.isfinite(full) else 0.0
    usable = (np.minimum(own, other) > low) & (np.maximum(own, other) < BRIGHT * full)
    if usable.sum() < LEAST_CELLS:
        return found
    logs = np.log(other[usable] / own[usable])
    middle, scatter = _middle(logs)
    if abs(middle) > MOST_RATIO or not (found.trusted or scatter <= EVEN):
        return found
    return replace(found, log_ratio=middle, log_sigma=math.hypot(1.25 * scatter / math.sqrt(logs.size), FLOOR))


def gains(
    tiles: Sequence[int], rows: Sequence[int], held: Mapping[int, float], matches: Mapping[Edge, Match]
) -> list[float]:
    """Return the factor, for each tile, that makes it as bright as its neighbours; 1 where next to nothing is amiss.

    Parameters
    ----------
    tiles : sequence of int
    rows : sequence of int
        The row that each of them lies in.
    held : mapping of int to float
        Gains of those tiles that are settled.
    matches : mapping of (int, int) to Match
        Pairs; those of other tiles, or without a ratio, are left out.

    Notes
    -----
    Weighted least squares: the logarithms of brightness of two tiles differ by the ratio on their overlap, and each is
    drawn to zero by `LAMP`. Linear shading left over makes a ramp, which that draws back, and no seams.
    """
    slot = {index: at for at, index in enumerate(tiles)}
    told = [
        (slot[a], slot[b], found)
        for (a, b), found in sorted(matches.items())
        if a in slot and b in slot and math.isfinite(found.log_sigma)
    ]
    shaded = {
        beside: _shared([found.log_ratio for a, b, found in told if (rows[a] == rows[b]) is beside])
        for beside in (True, False)
    }
    links = [Link(a, b, (found.log_ratio - shaded[rows[a] == rows[b]],), found.log_sigma) for a, b, found in told]
    fixed = np.array([[-math.log(held[i]) if i in held else math.nan] for i in tiles]).reshape(-1, 1)
    none = Prior(np.ones((1, 1)), np.zeros((1, 1)))
    brightness, _ = solve(np.zeros((len(tiles), 1)), fixed, links, none, LAMP)
    return [_gain(float(value)) for value in brightness[:, 0]]


def _shared(logs: list[float]) -> float:
    """Return what the ratios along an axis have in common, where that is neither chance nor the lamp; else 0."""
    if len(logs) < LEAST_PAIRS:
        return 0.0
    middle, scatter = _middle(np.array(logs))
    return middle if abs(middle) > max(SHADED, SURE * 1.25 * scatter / math.sqrt(len(logs))) else 0.0


def _middle(values: NDArray[Any]) -> tuple[float, float]:
    """Return the median, and the standard deviation about it as the median of the deviations tells it."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def _gain(brightness: float) -> float:
    gain = min(max(math.exp(-brightness), 1 / MOST_GAIN), MOST_GAIN)
    return 1.0 if abs(gain - 1) < INDISTINGUISHABLE else gain


def _cells(part: NDArray[Any]) -> NDArray[np.float32]:
    """Return the means of square cells; none where a side is shorter."""
    rows, cols = (n // CELL_PX for n in part.shape)
    if not (rows and cols):
        return np.zeros((0, 0), np.float32)
    whole = part[: rows * CELL_PX, : cols * CELL_PX].astype(np.float32)
    return np.asarray(cv2.resize(whole, (cols, rows), interpolation=cv2.INTER_AREA), np.float32)
