"""A placed tile, and its pixels on the mosaic's lattice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box
from edge_scanner.mosaic.gain import levelled, softened
from edge_scanner.mosaic.warp import Warp
from edge_scanner.tile import Pixels

TAPS = 4
STRIP_ROWS = 64
"""Rows filtered at a time: as many as the processor's cache holds, in floats of a chunk's width."""
EXACT_PX = 1e-3
"""A remainder below this is taken as a whole-pixel place: the pixels are copied untouched."""


@dataclass(frozen=True, slots=True)
class Source:
    """A placed tile as the kernel sees it.

    Parameters
    ----------
    order : int
        Sources are summed in this order.
    box : Box
        Mosaic pixels that the tile covers (whole pixels).
    usable : Box
        Part of `box` that may be used.
    shift : tuple of float
        (y, x) remainder in px, in -0.5..0.5: the tile's content lies this much below and right of `box`.
    crop : callable
        `crop(Box in tile pixels) -> (y, x, c)`.
    warp : Warp, optional
        The way from the mosaic to a tile that is not merely shifted; `box` then encloses the tile, `shift` is unused.
    residual_px : float
        How far the tile's overlaps are from agreeing with its place; infinite where that is not known.
    gain : float
        What makes the tile as bright as its neighbours, see `gain`.
    """

    order: int
    box: Box
    usable: Box
    shift: tuple[float, float]
    crop: Callable[[Box], Pixels]
    warp: Warp | None = None
    residual_px: float = math.inf
    gain: float = 1.0


def place(y_px: float, x_px: float, height: int, width: int, *, cubic: bool) -> tuple[Box, tuple[float, float]]:
    """Split a tile's place into the whole-pixel box it covers and the remainder that resampling takes care of.

    Parameters
    ----------
    y_px, x_px : float
        Mosaic coordinates of the tile's top-left pixel.
    height, width : int
        Tile.
    cubic : bool
        False (`pixel` placement) drops the remainder.
    """
    y, x = int(np.floor(y_px + 0.5)), int(np.floor(x_px + 0.5))
    shift = (y_px - y, x_px - x) if cubic else (0.0, 0.0)
    return Box(y, x, y + height, x + width), shift


def resampled(source: Source, part: Box) -> Pixels:
    """Return the tile's pixels (y, x, c) on the mosaic's lattice for a part of its box, as bright as they should be.

    A whole-pixel place is an exact copy; a sub-pixel one is a separable 4-tap cubic filter (Keys 1981, a = -1/2),
    with the tile's edge repeated beyond its border. The gain is part of the filter, so there is one rounding.
    """
    inner = part.shifted(-source.box.y0, -source.box.x0)
    dy, dx = (0.0 if abs(v) < EXACT_PX else v for v in source.shift)
    if dy == 0.0 and dx == 0.0:
        return levelled(source.crop(inner), source.gain)
    grown = inner.grown(TAPS // 2).intersect(Box(0, 0, source.box.height, source.box.width))
    pixels = source.crop(grown)
    top, left = inner.y0 - grown.y0, inner.x0 - grown.x0
    (taps_x, at_x), (taps_y, at_y) = cubic_taps(dx), cubic_taps(dy)
    taps_y = taps_y * np.float32(source.gain)
    out: Pixels = np.empty((inner.height, inner.width, pixels.shape[2]), pixels.dtype)
    floats = np.empty((min(STRIP_ROWS + TAPS, grown.height), *pixels.shape[1:]), np.float32)
    for y in range(0, inner.height, STRIP_ROWS):
        rows = min(STRIP_ROWS, inner.height - y)
        first = max(0, top + y - TAPS // 2)
        strip = pixels[first : top + y + rows + TAPS // 2]
        filtered = floats[: len(strip)]
        cv2.sepFilter2D(
            strip, cv2.CV_32F, taps_x, taps_y, dst=filtered, anchor=(at_x, at_y), borderType=cv2.BORDER_REPLICATE
        )
        moved = filtered[top + y - first :][:rows, left : left + inner.width]
        typed(softened(moved, source.gain, pixels.dtype), pixels.dtype, out[y : y + rows])
    return out


@lru_cache(maxsize=1024)
def cubic_taps(shift: float) -> tuple[NDArray[np.float32], int]:
    """Return the four taps that move an image by `shift` px, -0.5..0.5, towards larger indices, and their anchor."""
    offsets = np.arange(-2, 2, dtype=np.float64) + (shift <= 0)
    d = np.abs(offsets + shift)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    taps = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    normalised: NDArray[np.float32] = (taps / taps.sum()).astype(np.float32)
    normalised.flags.writeable = False
    return normalised, 1 if shift <= 0 else 2


def typed(values: NDArray[np.float32], dtype: np.dtype[Any], out: Pixels | None = None) -> Pixels:
    """Return averages (y, x, c) in the tiles' type: rounded to even and clipped to its range where that is of integers.

    Into `out`, contiguous and of the same shape, where given. What is below zero in `values` may be set to zero.
    """
    if out is None:
        if values.dtype == dtype:
            return values
        out = np.empty(values.shape, dtype)
    if dtype == np.uint8:  # by far the fastest conversion of OpenCV, but of magnitudes
        cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO, dst=values)
        cv2.convertScaleAbs(values, dst=out)
    elif dtype.str == "<u2":
        flat = np.ascontiguousarray(values).reshape(len(values), -1)
        cv2.add(flat, 0.0, dst=out.reshape(len(values), -1), dtype=cv2.CV_16U)
    else:
        out[...] = values
    return out
