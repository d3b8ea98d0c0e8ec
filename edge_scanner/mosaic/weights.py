"""Blending weights: geometry only, separable, above zero on every covered pixel.

Shared by the online mosaic, the offline fusion and the seamless inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
    """
    i = np.arange(length, dtype=np.float32)
    return np.minimum(np.minimum(i + 1, length - i), np.float32(max(1, feather)))


SEAM_PX = 8
"""Half the width of the fade along a seam."""


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
