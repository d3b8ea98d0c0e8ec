"""What of a frame the focus model sees: its most textured patches, on the network's pixel grid."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import STEEPEST_SINE, OpticsConfig
from edge_scanner.tile import Pixels

PATCH_PX = 256
"""Side of a patch on the network's grid."""

REFERENCE_NA = 0.75
REFERENCE_PIXEL_UM = 0.5
"""The network's grid: 0.5 um a pixel at NA 0.75, in proportion to 1 / NA elsewhere, where every lens blurs alike."""

CELL_PX = 8
"""Contrast is judged on means over cells of so many pixels, which outlast strong defocus."""

LEAST_CONTRAST = 0.006
"""Relative contrast of those means below which a patch holds too little to be judged."""

Patches = NDArray[np.float32]
"""(n, 3, 256, 256), intensity as a share of the camera's full scale."""


def camera_side_px(optics: OpticsConfig) -> int:
    """Return the side of a patch in camera pixels."""
    zoom = optics.pixel_size_um * optics.numerical_aperture / (REFERENCE_PIXEL_UM * REFERENCE_NA)
    return round(PATCH_PX / zoom)


def reference_unit(optics: OpticsConfig) -> float:
    """Return how many micrometres of the reference objective one micrometre of this one is worth."""
    return defocus_unit(optics.numerical_aperture, optics.refractive_index)


def defocus_unit(numerical_aperture: float, index: float = 1.0) -> float:
    """Return how many micrometres of defocus at NA 0.75 in air blur as much as one micrometre does here.

    It is the ratio of the marginal rays' phase, n (1 - cos a). On the network's grid, transfer functions from NA 0.25
    to 0.95 lie up to three times closer together so than by the square of the aperture, which holds for small angles
    alone and is 27 % off at NA 0.95.
    """
    return _marginal(numerical_aperture, index) / _marginal(REFERENCE_NA, 1.0)


def _marginal(numerical_aperture: float, index: float) -> float:
    sine = min(numerical_aperture / index, STEEPEST_SINE)
    return index * (1 - math.sqrt(1 - sine * sine))


def choose(pixels: Pixels, side_px: int, most: int) -> list[tuple[int, int]]:
    """Return the corners (y, x) of the most textured patches of a frame, best first.

    Parameters
    ----------
    pixels : ndarray, (y, x, c), uint8 or uint16
    side_px : int
        Of a patch, camera pixels.
    most : int
        How many at most. Patches too even to be judged are left out.
    """
    height, width, channels = pixels.shape
    rows, cols = height // side_px, width // side_px
    if not (rows and cols):
        return []
    top, left = (height - rows * side_px) // 2, (width - cols * side_px) // 2
    cells = max(2, side_px // CELL_PX)
    inner = pixels[top : top + rows * side_px, left : left + cols * side_px, channels // 2]
    means = cv2.resize(inner, (cols * cells, rows * cells), interpolation=cv2.INTER_AREA).astype(np.float32)
    blocks = means.reshape(rows, cells, cols, cells).transpose(0, 2, 1, 3).reshape(rows * cols, -1)
    contrast = blocks.std(axis=1) / np.maximum(blocks.mean(axis=1), 1.0)
    best = np.argsort(-contrast, kind="stable")[:most]
    return [
        (top + int(i) // cols * side_px, left + int(i) % cols * side_px) for i in best if contrast[i] > LEAST_CONTRAST
    ]


def cut(pixels: Pixels, corners: list[tuple[int, int]], side_px: int) -> Patches:
    """Return patches of an RGB frame as the network wants them."""
    scale = 1.0 / (255 if pixels.dtype == np.uint8 else 65535)
    how = cv2.INTER_AREA if side_px > PATCH_PX else cv2.INTER_LINEAR
    out = np.empty((len(corners), 3, PATCH_PX, PATCH_PX), np.float32)
    for patch, (y, x) in zip(out, corners, strict=True):
        part = pixels[y : y + side_px, x : x + side_px]
        if side_px != PATCH_PX:
            part = cv2.resize(part, (PATCH_PX, PATCH_PX), interpolation=how)
        np.multiply(part.transpose(2, 0, 1), np.float32(scale), out=patch)
    return out


def saturated(patches: Patches) -> NDArray[np.float64]:
    """Return the share of each patch that is at full scale, (n,), from one pixel in sixteen."""
    share: NDArray[np.float64] = (patches[:, :, ::4, ::4] >= 1).mean(axis=(1, 2, 3))
    return share
