"""Blending weights: geometry only, separable, above zero on every covered pixel.

Shared by the online mosaic, the offline fusion and the seamless inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_scanner.geometry import Box


@lru_cache(maxsize=64)
def ramp(length: int, feather: int) -> NDArray[np.float32]:
    """Return the weights along one axis of a tile: the distance to the nearer edge in pixels, at most `feather`.

    The outermost pixel weighs 1, so every covered pixel has weight; two tiles that overlap by up to `feather` are
    cross-faded linearly over the whole overlap once the weights are divided by their sum.

    Parameters
    ----------
    length : int
        Pixels of the tile along the axis.
    feather : int
        Longest ramp, pixels, at least 1.

    Returns
    -------
    ndarray, (length,), float32
        Not to be written to.
    """
    i = np.arange(length, dtype=np.float32)
    weights = np.minimum(np.minimum(i + 1, length - i), np.float32(max(1, feather)))
    weights.flags.writeable = False
    return weights


def depth_of(box: Box, cell: Box) -> NDArray[np.float32]:
    """Return how deep inside the box each pixel of the cell lies: the distance to the nearest edge."""
    wy = ramp(box.height, box.height)[cell.y0 - box.y0 : cell.y1 - box.y0]
    wx = ramp(box.width, box.width)[cell.x0 - box.x0 : cell.x1 - box.x0]
    depth: NDArray[np.float32] = np.minimum.outer(wy, wx)
    return depth


SEAM_PX = 8
"""Width of the fade along a seam."""


def seam(depths: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return weights that follow the tile in which a pixel lies deepest, with a short fade where that changes.

    Parameters
    ----------
    depths : sequence of ndarray, float32
        Each tile's distance from its nearest edge, px; zero where it does not cover.

    Returns
    -------
    list of ndarray, float32
        Above zero for the deepest tile, zero where a tile does not cover.
    """
    deepest = np.maximum.reduce(depths)
    return [np.where(d > 0, np.maximum(d - deepest + np.float32(SEAM_PX), 0), np.float32(0)) for d in depths]
