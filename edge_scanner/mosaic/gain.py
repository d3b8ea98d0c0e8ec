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


@lru_cache(maxsize=64)
def _table(dtype: str, gain: float) -> NDArray[Any]:
    full = np.iinfo(dtype).max
    levels = np.arange(full + 1, dtype=np.float64)
    scaled = levels * gain
    if gain > 1:
        knee, top = SHOULDER * full / gain, SHOULDER * full
        above = top + (levels - knee) * (full - top) / (full - knee)
        scaled = np.where(levels > knee, above, scaled)
    table = np.rint(scaled).astype(dtype)
    table.flags.writeable = False
    return table
