"""A tile made as bright as its neighbours: one table of grey levels a gain, no highlight clipped."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.tile import Pixels

SHOULDER = 0.985
"""Share of full scale above which a gain gives way, so that what was not saturated does not become so."""


def levelled(pixels: Pixels, gain: float) -> Pixels:
    """Return the pixels (y, x, c) times the gain, rounded once, same dtype; untouched for a gain of 1."""
    if gain == 1.0:
        return pixels
    if pixels.dtype.kind == "f":
        scaled: Pixels = pixels * pixels.dtype.type(gain)
        return scaled
    table = _table(pixels.dtype.name, gain)
    if pixels.dtype == np.uint8:
        return np.asarray(cv2.LUT(pixels, table)).reshape(pixels.shape)
    return table[pixels]


def softened(scaled: NDArray[np.float32], gain: float, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Return pixels that are multiplied by the gain already, but not rounded, with their highlights as `levelled` does.

    What the filter that multiplied them made brighter than full scale stays so.
    """
    if gain <= 1.0 or dtype.kind == "f":
        return scaled
    top, slope = _shoulder(np.iinfo(dtype).max, gain)
    if not scaled.size or scaled.max() <= top:
        return scaled
    above = np.float32(top) + (scaled - np.float32(top)) * np.float32(slope)
    bent: NDArray[np.float32] = np.minimum(scaled, above)
    return bent


def _shoulder(full: int, gain: float) -> tuple[float, float]:
    """Return the scaled level above which highlights give way, and the slope from there to full scale."""
    top = SHOULDER * full
    return top, (full - top) / (gain * full - top)


@lru_cache(maxsize=64)
def _table(dtype: str, gain: float) -> NDArray[Any]:
    full = np.iinfo(dtype).max
    levels = np.arange(full + 1, dtype=np.float64)
    scaled = levels * gain
    if gain > 1:
        top, slope = _shoulder(full, gain)
        scaled = np.where(scaled > top, top + (scaled - top) * slope, scaled)
    table = np.rint(scaled).astype(dtype)
    table.flags.writeable = False
    return table
