"""Any picture becomes (y, x, 3) uint8: grey, RGBA and 16 bits included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import SourceError


def rgb8(pixels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Return 8-bit RGB.

    Parameters
    ----------
    pixels : ndarray, (y, x, c), bool, uint8 or uint16
        c of 1 is grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha. Alpha is laid on white, as viewers do.
    path : Path
        Named in errors.

    Raises
    ------
    SourceError
        Another type or number of channels.
    """
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    channels = pixels.shape[2]
    if pixels.dtype != np.uint8 or channels not in (1, 2, 3, 4):
        raise SourceError(
            f"{path} has {channels} channels of type {pixels.dtype}, which the simulator cannot show.",
            "Give 8 or 16-bit grey or RGB.",
        )
    if channels in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint16)
        pixels = ((pixels[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
