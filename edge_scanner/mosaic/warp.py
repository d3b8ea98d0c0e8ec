"""Turned, sheared or tilted tiles: where each mosaic pixel lies in the tile, and what the tile shows there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.tile import Pixels

STEPS = 32
"""Positions are rounded to this fraction of a pixel, as OpenCV's tables are: an error of a hundredth of a pixel."""
REACH_PX = 4
_CHANNELS = 4
"""OpenCV remaps no more at a time."""


@dataclass(frozen=True, slots=True)
class Warp:
    """The way from mosaic pixels back into a tile.

    Parameters
    ----------
    inverse : ndarray, (3, 3), float64
        Takes mosaic (x, y, 1) to tile (x, y, 1), up to a factor.
    height, width : int
        The tile's.
    """

    inverse: NDArray[np.float64]
    height: int
    width: int


def warped(
    warp: Warp, part: Box, crop: Callable[[Box], Pixels]
) -> tuple[Pixels, NDArray[np.float32], NDArray[np.float32]]:
    """Return a tile's pixels on the mosaic's lattice, and how deep each lies inside of the tile.

    A mosaic pixel is covered when its centre is at most half a pixel outside of the tile's outermost centres. Pixels
    are interpolated by Lanczos' kernel over 8 x 8 neighbours; positions are rounded to 1/32 px in the tile's own
    frame, so the result does not depend on how the mosaic is cut into parts.

    Parameters
    ----------
    warp : Warp
    part : Box
        Mosaic pixels.
    crop : callable
        `crop(Box in tile pixels) -> (y, x, c)`.

    Returns
    -------
    pixels : ndarray, (y, x, c)
        Meaningless where not covered.
    depth_y, depth_x : ndarray, (y, x), float32
        Distance in pixels to the tile's nearer edge along each of its axes, as `ramp` counts it (1 for the outermost
        pixel); zero where not covered.
    """
    y, x = _positions(warp.inverse, part)
    inside = (y >= -0.5) & (y < warp.height - 0.5) & (x >= -0.5) & (x < warp.width - 0.5)
    depth_y = np.where(inside, np.minimum(y + 1, warp.height - y), 0).astype(np.float32)
    depth_x = np.where(inside, np.minimum(x + 1, warp.width - x), 0).astype(np.float32)
    corner = crop(Box(0, 0, 1, 1))
    if not inside.any():
        return np.zeros((part.height, part.width, corner.shape[2]), corner.dtype), depth_y, depth_x
    y0, y1, x0, x1 = (v for axis in (y, x) for v in (axis[inside].min(), axis[inside].max()))
    near = Box(int(np.floor(y0)), int(np.floor(x0)), int(np.ceil(y1)) + 1, int(np.ceil(x1)) + 1)
    box = near.grown(REACH_PX).intersect(Box(0, 0, warp.height, warp.width))
    at_x, at_y = ((v - o).astype(np.float32) for v, o in ((np.clip(x, x0, x1), box.x0), (np.clip(y, y0, y1), box.y0)))
    if corner.dtype.kind == "f":  # sums of 64 float terms: what is left over the corner's value keeps constants exact
        return _remapped(crop(box) - corner, at_x, at_y) + corner, depth_y, depth_x
    return _remapped(crop(box), at_x, at_y), depth_y, depth_x


def _positions(inverse: NDArray[np.float64], part: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the tile's (y, x) of every pixel of a part, rounded to 1/STEPS px; outside of the tile where behind it."""
    ys, xs = np.arange(part.y0, part.y1, dtype=np.float64)[:, None], np.arange(part.x0, part.x1, dtype=np.float64)
    x, y = (row[0] * xs + (row[1] * ys + row[2]) for row in inverse[:2])
    if inverse[2, 0] or inverse[2, 1] or inverse[2, 2] != 1.0:
        w = inverse[2, 0] * xs + (inverse[2, 1] * ys + inverse[2, 2])
        behind = w <= 0
        w[behind] = 1.0
        x, y = np.where(behind, -9.0, x / w), np.where(behind, -9.0, y / w)
    for axis in (y, x):
        np.multiply(axis, STEPS, out=axis)
        np.rint(axis, out=axis)
        np.divide(axis, STEPS, out=axis)
    return y, x


def _remapped(pixels: Pixels, x: NDArray[np.float32], y: NDArray[np.float32]) -> Pixels:
    groups = [pixels[..., c : c + _CHANNELS] for c in range(0, pixels.shape[2], _CHANNELS)]
    done = [
        np.asarray(
            cv2.remap(np.ascontiguousarray(group), x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
        ).reshape(*x.shape, group.shape[2])
        for group in groups
    ]
    return done[0] if len(done) == 1 else np.concatenate(done, axis=2)
