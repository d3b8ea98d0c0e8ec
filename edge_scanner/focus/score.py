"""What a frame says of its own focus: how sharp it is, and whether there is anything to focus on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.tile import Pixels

CELL_PX = 16
"""Side of the cells in which coarse contrast is seen; as wide as the blur of some 8 um of defocus at 20x/0.75."""

BACKGROUND_DEGREE = 4
"""Degree of the polynomial that takes vignetting and uneven light away."""

UNEVEN_GLASS = 0.0015
"""Relative unevenness of clean glass after that; coarse contrast is never measured in less than this."""

BAND_PX, BAND_EVERY_PX = 16, 64
"""Sharpness is judged on bands of so many rows, one in so many rows: enough, four times as fast, and in the cache."""

DITHER_FLOOR = 0.13
"""Grey levels; the unevenness that rounding to whole grey levels leaves where noise does not dither it."""


def sharpness(pixels: Pixels) -> float:
    """Return how sharp a frame is: the squared gradient that two neighbouring lines agree on.

    Each gradient over two pixels (Brenner) is multiplied by the same gradient one line further on instead of by
    itself. The noise of two lines is independent, so its expectation is zero and no noise floor has to be known;
    that keeps the flanks of the curve readable more than 10 um away from focus. RGB frames are judged by green, which
    axial colour shifts least from what the eye calls focus.

    Parameters
    ----------
    pixels : ndarray, (y, x, c), uint8 or uint16

    Returns
    -------
    float
        Mean product of the gradients of both directions over the squared mean, so independent of exposure. Zero on
        average on featureless frames, where it may be slightly negative; 0 for black ones.
    """
    energy, count, total = 0.0, 0, 0.0
    for top in range(0, pixels.shape[0] - 2, BAND_EVERY_PX):
        band = cv2.extractChannel(pixels[top : top + BAND_PX + 2], pixels.shape[2] // 2)
        along_x = cv2.subtract(band[:-1, 2:], band[:-1, :-2], dtype=cv2.CV_32F)
        along_y = cv2.subtract(band[2:], band[:-2], dtype=cv2.CV_32F)
        energy += float(np.vdot(along_x[1:], along_x[:-1]) + np.einsum("yx,yx", along_y[:, 1:], along_y[:, :-1]))
        total += float(band.sum())
        count += band.size
    return energy * count / total**2 if total > 0 else 0.0


def sharpness_error(pixels: Pixels) -> float:
    """Return the standard deviation that noise gives `sharpness` on a featureless frame like this.

    It is a mean of products of two gradients of independent noise, each of variance `2 sigma^2`, in two directions.
    """
    height, width, channels = pixels.shape
    mean = float(cv2.mean(pixels)[channels // 2])
    if mean <= 0:
        return 0.0
    judged = height * width * BAND_PX / BAND_EVERY_PX
    return float(np.sqrt(8 / judged) * (noise(pixels)[channels // 2] / mean) ** 2)


def texture(pixels: Pixels) -> float:
    """Return the coarse contrast of a frame in units of the noise: about 1 or less on empty glass, tens on tissue.

    Means over cells of 16 x 16 px (of every fourth row) outlast strong defocus and average the noise; a polynomial of
    degree 4 takes vignetting away; the standard deviation of the rest counts, in the channel that shows most. The unit
    is the noise of such a mean together with the unevenness of clean glass.

    Parameters
    ----------
    pixels : ndarray, (y, x, c), uint8 or uint16
    """
    height, width, channels = pixels.shape
    side = max(1, min(CELL_PX, min(height, width) // 32))
    rows, cols = height // side, width // side
    every = max(1, side // 4)
    cells = np.empty((rows, cols, channels), np.float32)
    for row in range(rows):
        band = pixels[row * side : (row + 1) * side : every, : cols * side].astype(np.float32)
        cells[row] = cv2.resize(band, (cols, 1), interpolation=cv2.INTER_AREA).reshape(cols, channels)
    cells = cells.reshape(-1, channels)
    mean = cells.mean(axis=0)
    contrast = _without_background(cells, rows, cols).std(axis=0)
    unit = np.sqrt(noise(pixels) ** 2 * every / side**2 + (UNEVEN_GLASS * mean) ** 2 + DITHER_FLOOR**2)
    return float(np.max(contrast / unit))


def noise(pixels: Pixels) -> NDArray[np.float64]:
    """Return the noise of each channel, grey levels, one sigma, from second differences along the rows.

    Fine texture in focus counts as noise too, so this is an upper estimate on tissue.
    """
    lines = np.ascontiguousarray(pixels[::8])
    bend = cv2.filter2D(lines, cv2.CV_32F, np.array([[1.0, -2.0, 1.0]]), borderType=cv2.BORDER_REPLICATE)
    mean = cv2.mean(cv2.absdiff(bend, np.zeros_like(bend)))[: pixels.shape[2]]
    sigma: NDArray[np.float64] = np.asarray(mean) * np.sqrt(np.pi / 2 / 6)
    return sigma


def _without_background(cells: NDArray[np.float32], rows: int, cols: int) -> NDArray[Any]:
    """Subtract the least-squares polynomial of degree 4 in (y, x) from each channel's cells."""
    basis = _polynomials(rows, cols)
    return cells - basis @ np.linalg.solve(basis.T @ basis, basis.T @ cells)


@lru_cache(maxsize=2)
def _polynomials(rows: int, cols: int) -> NDArray[np.float64]:
    """Return all products of powers of y and x up to degree 4 on a grid, one a column."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, cols), indexing="ij")
    powers = [(i, j) for i in range(BACKGROUND_DEGREE + 1) for j in range(BACKGROUND_DEGREE + 1 - i)]
    basis = np.stack([(y**i * x**j).ravel() for i, j in powers], axis=1)
    basis.flags.writeable = False
    return basis
