"""Cell nuclei of the synthetic tissue: one candidate a lattice cell, kept, shaped and turned by where it lies."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.sim.anatomy import Points, Survey
from edge_scanner.sim.lattice import Field, cell_points, hashed

_CELL = 13.0
_CORNERS = 14
_SHIFT = 4
_SEED = 41


def draw_nuclei(seed: int, scale: int, survey: Survey, y0: int, x0: int, size: int) -> Field:
    """Return the haematoxylin of the nuclei over a block.

    Parameters
    ----------
    seed : int
    scale : int
        Pixels per 0.5 um.
    survey : Survey
        The block's.
    y0, x0, size : int
        The block, pixels. A nucleus on its border is drawn alike by both neighbours.

    Returns
    -------
    ndarray, (size, size), float32
        0 outside nuclei, about 0.5 to 1.1 inside.
    """
    margin = 16 * scale
    canvas = np.zeros((size + 2 * margin, size + 2 * margin), np.uint8)
    outlines, shades = _outlines(seed + _SEED, scale, survey, y0 - margin, x0 - margin, canvas.shape[0])
    for outline, shade in zip(outlines, shades, strict=True):
        cv2.fillConvexPoly(canvas, outline, shade, cv2.LINE_AA, _SHIFT)
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.7)
    rim = cv2.subtract(soft, cv2.blur(soft, (7 * scale, 7 * scale)))
    density = cv2.addWeighted(soft, 1 / 255, cv2.min(rim, soft), 0.55 / 255, 0, dtype=cv2.CV_32F)
    return np.asarray(density[margin:-margin, margin:-margin])


def _outlines(
    seed: int, scale: int, survey: Survey, y0: int, x0: int, size: int
) -> tuple[NDArray[np.int32], list[int]]:
    """Return the outlines (n, corners, 2) of kept nuclei in fixed point (x, y) of the canvas, and their shades."""
    cell = _CELL * scale
    i, j = np.mgrid[int(y0 // cell) : int((y0 + size) // cell) + 1, int(x0 // cell) : int((x0 + size) // cell) + 1]
    i, j = i.ravel(), j.ravel()
    y, x = cell_points(seed, cell, 0.6, i, j)
    gland, lumen, crowd, deep = (
        survey.at(field, y, x) for field in (survey.gland, survey.lumen, survey.crowd, survey.deep)
    )
    basal = (gland > lumen + (1 - lumen) * 0.30) & (gland < 0.95)
    share = np.where(gland > 1.03, 0.10 + 0.75 * crowd, np.where(basal, 0.93, np.where(gland > 0.95, 0.2, 0.0)))
    kept = (hashed(seed + 2, i, j) < share) & (deep > 0.02)
    i, j, y, x, crowd, epithelial = (a[kept] for a in (i, j, y, x, crowd, gland <= 1.0))
    roundish = hashed(seed + 3, i, j) < crowd
    luck = hashed(seed + 4, i, j)
    long = np.where(epithelial, 6.0 + 2.0 * luck, np.where(roundish, 4.8 + luck, 7.0 + 5 * luck)) * scale
    short = np.where(epithelial, 4.2 + 1.2 * luck, np.where(roundish, 4.4 + luck, 2.0 + 1.0 * luck)) * scale
    angle = np.where(epithelial, _uphill(survey, survey.gland, y, x), _uphill(survey, survey.along, y, x))
    shade = 120 + 60 * hashed(seed + 5, i, j) + np.where(roundish & ~epithelial, 50, 0)
    outline = _ellipses(y - y0, x - x0, long, short, angle, seed, i, j)
    return np.rint(outline * (1 << _SHIFT)).astype(np.int32), shade.astype(int).tolist()


def _uphill(survey: Survey, field: Field, y: Points, x: Points) -> Points:
    """Return the direction in which a field rises, radians from x to y."""
    rise_y, rise_x = (survey.at(np.asarray(slope), y, x) for slope in np.gradient(field))
    return np.asarray(np.arctan2(rise_y, rise_x))


def _ellipses(
    y: Points, x: Points, long: Points, short: Points, angle: Points, seed: int, i: Points, j: Points
) -> Points:
    """Return slightly irregular ellipses, (n, corners, 2), as (x, y)."""
    t = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    wobble = 1 + 0.10 * np.sin(2 * t + 6.28 * hashed(seed + 6, i, j)[:, None])
    wobble += 0.07 * np.sin(3 * t + 6.28 * hashed(seed + 7, i, j)[:, None])
    a, b = long[:, None] * np.cos(t) * wobble, short[:, None] * np.sin(t) * wobble
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([x[:, None] + a * cos - b * sin, y[:, None] + a * sin + b * cos], axis=2)
