"""The blur of defocus: a kernel from the pupil function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import STEEPEST_SINE

_FLOOR = 0.05
_EDGE_ENERGY = 0.002
_FINE_MAX = 8


@dataclass(frozen=True, slots=True)
class Pupil:
    """What of the objective decides the blur at one wavelength.

    Parameters
    ----------
    numerical_aperture : float
    index : float
        Refractive index of the immersion.
    wavelength_um : float
    spherical_waves : float
        Coefficient of 6 rho^4 - 6 rho^2 + 1, waves; makes the two sides of focus differ.
    """

    numerical_aperture: float
    index: float
    wavelength_um: float
    spherical_waves: float

    @property
    def slope(self) -> float:
        """Radius of the geometrical blur disc per micrometre of defocus."""
        sine = min(self.numerical_aperture / self.index, STEEPEST_SINE)
        return sine / math.sqrt(1 - sine * sine)


@lru_cache(maxsize=2048)
def defocus_kernel(pupil: Pupil, pixel_size_um: float, defocus_um: float) -> NDArray[np.float32]:
    """Return the kernel that turns the in-focus image into the one `defocus_um` away.

    The specimen is a picture that an ideal objective already took in focus, so the kernel is the ratio of two
    optical transfer functions, out of focus over in focus (Goodman, Introduction to Fourier Optics, 6.4: an OTF is
    the autocorrelation of the pupil), with a floor under the divisor. Without defocus and aberration it is a point.

    Where a pixel is much coarser than the diffraction limit the blur is the cone of light, cut across.

    Memory bound: 2048 kernels are kept, each of about (2 r)^2 float32 for a blur disc of r pixels.

    Parameters
    ----------
    pupil : Pupil
    pixel_size_um : float
        On the specimen.
    defocus_um : float
        Positive: the stage is above best focus.

    Returns
    -------
    ndarray, (k, k), float32
        k odd, sum 1.
    """
    radius_px = (abs(defocus_um) * pupil.slope + 2 * pupil.wavelength_um / pupil.numerical_aperture) / pixel_size_um
    fine = max(1, math.ceil(4.2 * pupil.numerical_aperture * pixel_size_um / pupil.wavelength_um))
    if fine > _FINE_MAX:
        return _cone(abs(defocus_um) / pixel_size_um, pupil.slope)
    size = 1 << math.ceil(math.log2(max(16, 4 * radius_px)))
    ratio = _ratio(pupil, pixel_size_um, defocus_um, size, fine)
    kernel = np.fft.fftshift(np.fft.ifft2(ratio).real)
    half = _half_width(kernel, size // 2)
    middle = slice(size // 2 - half, size // 2 + half + 1)
    cut = kernel[middle, middle]
    cut = (cut / cut.sum()).astype(np.float32)
    cut.flags.writeable = False
    return np.asarray(cut)


def _ratio(pupil: Pupil, pixel_size_um: float, defocus_um: float, size: int, fine: int) -> NDArray[np.float64]:
    f = np.fft.fftfreq(size * fine, pixel_size_um / fine)
    sine = np.hypot(f[:, None], f[None, :]) * pupil.wavelength_um
    rho = sine / pupil.numerical_aperture
    axial = np.sqrt(np.maximum(pupil.index**2 - sine**2, 0.0))
    rho2 = rho * rho
    waves = (axial - pupil.index) * defocus_um / pupil.wavelength_um
    waves = waves + pupil.spherical_waves * (6 * rho2 * rho2 - 6 * rho2 + 1)
    inside = (rho <= 1).astype(np.complex128)
    blurred = _transfer(inside * np.exp(2j * np.pi * waves), size)
    sharp = _transfer(inside, size)
    return blurred * sharp * (1 + _FLOOR**2) / (sharp * sharp + _FLOOR**2)


def _transfer(pupil: NDArray[np.complex128], size: int) -> NDArray[np.float64]:
    """Return the OTF at the `size` x `size` frequencies that a camera pixel can tell apart."""
    spread = np.abs(np.fft.ifft2(pupil)) ** 2
    otf = np.fft.fft2(spread).real
    keep = np.r_[0 : size // 2, -(size // 2) : 0]
    return np.asarray(otf[np.ix_(keep, keep)] / otf[0, 0])


def _cone(defocus_px: float, slope: float) -> NDArray[np.float32]:
    """Return what a cone of light of that half angle is cut to, with soft edges; odd sided, sum 1.

    The pupil is evenly lit by the sine of the angle and the cut is as wide as its tangent, so it is brightest in the
    middle: 1 / (z^2 + r^2)^2, which is an even disc for narrow cones only.
    """
    radius_px = defocus_px * slope
    half = math.ceil(radius_px + 0.5)
    y, x = np.ogrid[-half : half + 1, -half : half + 1]
    cut = np.clip(radius_px + 0.5 - np.hypot(y, x), 0, 1) / (defocus_px**2 + y * y + x * x + _FLOOR) ** 2
    cut = (cut / cut.sum()).astype(np.float32)
    cut.flags.writeable = False
    return np.asarray(cut)


def _half_width(kernel: NDArray[np.float64], middle: int) -> int:
    """Return the half width outside which next to nothing of the kernel lies."""
    absolute = np.abs(kernel)
    total = absolute.sum()
    for half in range(1, middle):
        inside = absolute[middle - half : middle + half + 1, middle - half : middle + half + 1].sum()
        if inside >= (1 - _EDGE_ENERGY) * total:
            return half
    return middle - 1
