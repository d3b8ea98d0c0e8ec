"""Blending weights: geometry only, separable, above zero on every covered pixel.

Shared by the online mosaic, the offline fusion and the seamless inference.
"""

from __future__ import annotations

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
