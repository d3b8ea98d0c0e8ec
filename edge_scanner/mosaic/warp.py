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
_FAR = -float(2**23)
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
    depth_y, depth_x = np.minimum(y + 1, warp.height - y), np.minimum(x + 1, warp.width - x)
    inside = np.minimum(depth_y, depth_x) >= 0.5
    depth_y *= inside
    depth_x *= inside
    corner = crop(Box(0, 0, 1, 1))
    if not inside.any():
        return np.zeros((part.height, part.width, corner.shape[2]), corner.dtype), depth_y, depth_x
    np.clip(y, -0.5, warp.height - 0.5, out=y)
    np.clip(x, -0.5, warp.width - 0.5, out=x)
    low, high = (int(y.min()), int(x.min())), (int(y.max()), int(x.max()))
    box = Box(*low, *high).grown(REACH_PX + 1).intersect(Box(0, 0, warp.height, warp.width))
    y -= box.y0
    x -= box.x0
    if corner.dtype.kind == "f":  # sums of 64 float terms: what is left over the corner's value keeps constants exact
        return _remapped(crop(box) - corner, x, y) + corner, depth_y, depth_x
    return _remapped(crop(box), x, y), depth_y, depth_x


def _positions(inverse: NDArray[np.float64], part: Box) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the tile's (y, x) of every pixel of a part, rounded to 1/STEPS px, which float32 holds exactly.

    Where the mosaic's pixel lies behind a tilted tile, a place far outside of it.
    """
    ys, xs = np.arange(part.y0, part.y1, dtype=np.float64)[:, None], np.arange(part.x0, part.x1, dtype=np.float64)
    x, y = (STEPS * row[0] * xs + STEPS * (row[1] * ys + row[2]) for row in inverse[:2])
    if inverse[2, 0] or inverse[2, 1] or inverse[2, 2] != 1.0:
        w = inverse[2, 0] * xs + (inverse[2, 1] * ys + inverse[2, 2])
        behind = w <= 0
        w[behind] = 1.0
        x, y = np.where(behind, _FAR, x / w), np.where(behind, _FAR, y / w)
    for axis in (y, x):
        np.rint(axis, out=axis)
        np.clip(axis, _FAR, -_FAR, out=axis)
    step = np.float32(1 / STEPS)
    return y.astype(np.float32) * step, x.astype(np.float32) * step


def _remapped(pixels: Pixels, x: NDArray[np.float32], y: NDArray[np.float32]) -> Pixels:
    groups = [pixels[..., c : c + _CHANNELS] for c in range(0, pixels.shape[2], _CHANNELS)]
    done = [
        np.asarray(
            cv2.remap(np.ascontiguousarray(group), x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
        ).reshape(*x.shape, group.shape[2])
        for group in groups
    ]
    return done[0] if len(done) == 1 else np.concatenate(done, axis=2)
