"""The sub-pixel shift between two views of the same strip of specimen.

Coarse: phase correlation at half resolution, tapered and only partly whitened; its highest peaks within reach are
each checked by normalised cross-correlation on their own common part. Fine: gradient (Lucas-Kanade) steps at full
resolution. Smoothing and shifting are one filter there, a Gaussian sampled off its centre, so there is no
interpolation error, and two identical strips give a shift of exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

PEAKS = 4
SMOOTH_PX = 1.0
TAPS = 4
HIGH_PASS_PX = 31
FLOOR_PX = 0.01
"""What the model of a pure shift leaves unexplained, sigma; bounds the weight of a pair."""
CORRELATED_PX = 4 * math.pi * SMOOTH_PX**2
"""Area over which the smoothing ties the noise of neighbouring pixels together."""
MIN_COMMON_PX = 2 * TAPS + 4
START_STEPS = 4
"""The coarse shift is rounded to this share of a pixel: strips that lie whole pixels apart start, and stay, there."""
STEPS = 8
CONVERGED_PX = 0.01
"""A last step below this leaves about a tenth of it."""
MIN_NCC = 0.6
MIN_MARGIN = 0.1
MAX_SIGMA_PX = 0.3


@dataclass(frozen=True, slots=True)
class Match:
    """How far the second strip's specimen lies from where the stage put it.

    Parameters
    ----------
    dy_px, dx_px : float
        Shift to add to the second tile's nominal place (relative to the first).
    sigma_px : float
        Standard deviation from noise and texture; infinite without texture.
    ncc : float
        Normalised cross-correlation at that shift, smoothed and high-passed strips.
    margin : float
        How much better (in coarse NCC) than the next peak elsewhere.
    log_ratio, log_sigma : float
        Natural logarithm of the second strip's brightness over the first's where both show the same, and its standard
        deviation; infinite where that was not measured (see `gain`).
    """

    dy_px: float
    dx_px: float
    sigma_px: float
    ncc: float
    margin: float
    log_ratio: float = 0.0
    log_sigma: float = math.inf

    @property
    def trusted(self) -> bool:
        """Whether the pair may take part in a solve: alike, unambiguous, and textured along both axes."""
        return self.ncc >= MIN_NCC and self.margin >= MIN_MARGIN and self.sigma_px <= MAX_SIGMA_PX


NO_MATCH = Match(0.0, 0.0, math.inf, 0.0, 0.0)


def match(first: NDArray[Any], second: NDArray[Any], reach_px: float) -> Match:
    """Measure the shift between two strips of nominally the same place.

    Parameters
    ----------
    first, second : ndarray, (y, x), uint8 or uint16
        Same shape.
    reach_px : float
        Largest shift along either axis.

    Returns
    -------
    Match
        `first[p]` shows what `second[p - (dy_px, dx_px)]` shows; `NO_MATCH` where there is nothing to see.
    """
    return next(matches(first, second, (reach_px,)))


def matches(first: NDArray[Any], second: NDArray[Any], reaches_px: Sequence[float]) -> Iterator[Match]:
    """Yield what `match` finds within each reach, in turn; a wider search costs less than a first one."""
    factor = 2 if min(first.shape) >= 48 else 1
    a, b = _reduced(first, factor), _reduced(second, factor)
    surface = _correlation(a, b) if a.any() and b.any() else None  # a strip may be even
    for reach_px in reaches_px:
        if surface is None:
            yield NO_MATCH
        else:
            yield _refine(first, second, *_coarse(a, b, surface, reach_px, factor), reach_px + 1)


def _coarse(a: Image, b: Image, surface: Image, reach_px: float, factor: int) -> tuple[float, float, float]:
    """Return (dy, dx, margin), the shift to a pixel or better, given the reduced strips and their correlation."""
    ry, rx = (min(math.ceil(reach_px / factor), n - n // 4 - 1, n // 2 - 1) for n in a.shape)
    surface = np.roll(surface, (ry, rx), (0, 1))[: 2 * ry + 1, : 2 * rx + 1]
    tops = np.where(surface >= cv2.dilate(surface, np.ones((3, 3), np.uint8)), surface, -np.inf).ravel()
    best: list[tuple[float, int, int]] = []
    for flat in np.argsort(tops, kind="stable")[: -PEAKS - 1 : -1]:
        dy, dx = int(flat) // surface.shape[1] - ry, int(flat) % surface.shape[1] - rx
        best.append((_ncc(*common(a, b, dy, dx)), dy, dx))
    best.sort(reverse=True)
    ncc, dy, dx = best[0]
    rivals = [other for other, y, x in best[1:] if max(abs(y - dy), abs(x - dx)) > 3]
    y, x = _vertex(surface[:, rx + dx], ry + dy), _vertex(surface[ry + dy], rx + dx)
    start_y, start_x = (round(v * factor * START_STEPS) / START_STEPS for v in (y - ry, x - rx))
    return start_y, start_x, ncc - max(rivals, default=0.0)


def _vertex(line: Image, at: int) -> float:
    """Return where the parabola through a peak and its two neighbours is highest; the peak itself at the border."""
    if not 0 < at < line.size - 1:
        return float(at)
    before, top, after = (float(value) for value in line[at - 1 : at + 2])
    bend = before + after - 2 * top
    return at + 0.5 * (before - after) / bend if bend < 0 else float(at)


def _reduced(strip: NDArray[Any], factor: int) -> Image:
    h, w = (n // factor for n in strip.shape)
    small = strip[: h * factor, : w * factor].astype(np.float32)
    if factor > 1:
        small = cv2.resize(small, (w, h), interpolation=cv2.INTER_AREA)
    high: Image = small - cv2.blur(small, (HIGH_PASS_PX // factor,) * 2, borderType=cv2.BORDER_REFLECT)
    return high


@lru_cache(maxsize=8)
def _taper(height: int, width: int) -> Image:
    def edge(n: int) -> Image:
        ramp = np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / max(1.0, n / 8)
        rise: Image = np.sin(np.minimum(1.0, ramp) * np.pi / 2).astype(np.float32) ** 2
        return rise

    taper: Image = np.outer(edge(height), edge(width))
    taper.flags.writeable = False
    return taper


def _correlation(a: Image, b: Image) -> Image:
    """Return the circular cross-correlation, its amplitude spectrum flattened by a square root."""
    size = tuple(cv2.getOptimalDFTSize(n) for n in a.shape)
    spectrum_a, spectrum_b = (np.fft.rfft2(_tapered(image, size)) for image in (a, b))
    cross = spectrum_a * np.conj(spectrum_b)
    amplitude = np.abs(cross)
    cross /= np.sqrt(amplitude * amplitude.max()) + 1e-3 * amplitude.max() + np.float32(1e-12)
    surface: Image = np.fft.irfft2(cross, size).astype(np.float32)
    return surface


def _tapered(image: Image, size: tuple[int, ...]) -> Image:
    """Return the image without its edges, zeros added up to the size: numpy's own padding takes as long as the rest."""
    tapered: Image = np.zeros(size, np.float32)
    np.multiply(image, _taper(*image.shape), out=tapered[: image.shape[0], : image.shape[1]])
    return tapered


def common(a: NDArray[Any], b: NDArray[Any], dy: int, dx: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the parts of a and b that show the same place when b lies at (dy, dx)."""
    h, w = a.shape
    y0, y1, x0, x1 = max(0, dy), min(h, h + dy), max(0, dx), min(w, w + dx)
    return a[y0:y1, x0:x1], b[y0 - dy : y1 - dy, x0 - dx : x1 - dx]


def _ncc(a: Image, b: Image) -> float:
    scale = math.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / scale if scale > 0 else 0.0


def _dot(a: Image, b: Image) -> float:
    return float(np.einsum("ij,ij->", a, b))


def _refine(first: NDArray[Any], second: NDArray[Any], y: float, x: float, margin: float, reach: float) -> Match:
    for _ in range(4):
        iy, ix = round(y), round(x)
        parts = common(first, second, iy, ix)
        if min(*parts[0].shape, *parts[1].shape) < MIN_COMMON_PX:
            return NO_MATCH
        fine = _gradient_steps(_high_passed(parts[0]), _high_passed(parts[1]), y - iy, x - ix)
        if fine is None:
            return NO_MATCH
        fy, fx, sigma, ncc = fine
        y, x = iy + fy, ix + fx
        if max(abs(y), abs(x)) > reach:
            return NO_MATCH
        if max(abs(fy), abs(fx)) <= 0.75:
            return Match(y, x, sigma, ncc, margin)
    return NO_MATCH


def _high_passed(part: NDArray[Any]) -> Image:
    low = cv2.boxFilter(part, cv2.CV_32F, (HIGH_PASS_PX, HIGH_PASS_PX), borderType=cv2.BORDER_REFLECT)
    high: Image = np.subtract(part, low, dtype=np.float32)
    return high


def _gradient_steps(a: Image, b: Image, fy: float, fx: float) -> tuple[float, float, float, float] | None:
    """Return (y, x, sigma, ncc): the shift, within about a pixel, that makes b look like a; None without texture.

    The curvature is that of the texture which both share (gradients of a times gradients of b), or noise would pass
    for texture: the steps would fall short and the standard deviation be too small. It is taken at the start, a
    fraction of a pixel away, which moves the steps' lengths a little and not where they end.
    """
    filtered = _smoothed(a, 0.0, 0.0)
    fixed, slopes = filtered[1:-1, 1:-1].ravel(), _slopes(filtered)
    filtered = _smoothed(b, fy, fx)
    cross = _products(slopes, _slopes(filtered))
    curvature = (cross + cross.T) / 2
    if not (curvature[0, 0] > 0 and np.linalg.det(curvature) > 1e-6 * curvature[0, 0] * curvature[1, 1]):
        return None
    fixed_energy = float(fixed @ fixed)
    for _ in range(STEPS):
        moved = filtered[1:-1, 1:-1].ravel()
        similar, energy = float(fixed @ moved), (fixed_energy, float(moved @ moved))
        difference = fixed - min(max(math.sqrt(energy[0] / energy[1]), 0.5), 2.0) * moved
        step = -np.linalg.solve(curvature, (slopes @ difference).astype(float))
        fy, fx = fy + float(step[0]), fx + float(step[1])
        if np.abs(step).max() < CONVERGED_PX or max(abs(fy), abs(fx)) > 1.5:
            break
        filtered = _smoothed(b, fy, fx)
    sigma = math.hypot(_spread(slopes * difference, curvature), FLOOR_PX)
    return fy, fx, sigma, similar / math.sqrt(energy[0] * energy[1])


def _spread(scores: Image, curvature: NDArray[np.float64]) -> float:
    """Return the larger standard deviation of the shift, pixels, by the sandwich formula.

    It takes the noise where the texture is: a few structures on clean glass do not borrow the glass's calm.
    """
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ _products(scores, scores) @ inverse * CORRELATED_PX
    return math.sqrt(max(float(covariance.diagonal().max()), 0.0))


def _products(a: Image, b: Image) -> NDArray[np.float64]:
    """Return a @ b.T, (2, 2); by BLAS, the product of matrices so flat takes ten times as long as these four."""
    return np.array([[float(row @ other) for other in b] for row in a])


def _smoothed(image: Image, dy: float, dx: float) -> Image:
    """Return the image smoothed and moved by (dy, dx), without the rim that the filters cannot fill."""
    filtered: Image = cv2.sepFilter2D(image, cv2.CV_32F, _gaussian(dx), _gaussian(dy))[TAPS:-TAPS, TAPS:-TAPS]
    return filtered


def _slopes(filtered: Image) -> Image:
    """Return the slopes along y and x, (2, n), of all pixels but the outermost."""
    slopes = np.empty((2, filtered.shape[0] - 2, filtered.shape[1] - 2), np.float32)
    np.subtract(filtered[2:, 1:-1], filtered[:-2, 1:-1], out=slopes[0])
    np.subtract(filtered[1:-1, 2:], filtered[1:-1, :-2], out=slopes[1])
    slopes *= 0.5
    return slopes.reshape(2, -1)


def _gaussian(offset: float) -> Image:
    """Return the taps, for correlation, of a Gaussian that moves the image by `offset` towards larger indices."""
    taps = np.exp(-0.5 * ((np.arange(-TAPS, TAPS + 1) + offset) / SMOOTH_PX) ** 2)
    normalised: Image = (taps / taps.sum()).astype(np.float32)
    return normalised
