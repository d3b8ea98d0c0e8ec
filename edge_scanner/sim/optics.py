"""What the camera sees: the specimen through the objective, onto the sensor.

The centre of the field of view is the stage position; the specimen's top-left corner lies at stage (0, 0). Camera
pixel (row, col) looks at the field point ((col + 0.5) - W/2, (row + 0.5) - H/2) * pixel_size, mirrored in x and then
turned against the stage. With blur, noise, vignetting and surface off, a frame at whole pixels equals the specimen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import STEEPEST_SINE, Config, OpticsConfig
from edge_scanner.geometry import Position
from edge_scanner.sim.picture import Specimen
from edge_scanner.sim.psf import Pupil, defocus_kernel
from edge_scanner.sim.surface import FocalSurface
from edge_scanner.tile import Pixels

Plane = NDArray[np.float32]
"""(y, x) float32 grey levels 0 to 255."""

RGB_WAVELENGTHS_UM = (0.61, 0.53, 0.46)
_TOLD_NA = 0.75
"""The aperture that `sim.axial_colour_um` and the step of focus are told for."""

_FOCUS_STEP_UM = 0.05
_COARSE_PX = 12.0
_SMEAR_MAX_PX = 255.0


@dataclass(frozen=True, slots=True)
class Channel:
    """One camera channel: its share of the specimen's R, G and B, its pupil and where it focuses."""

    weights: tuple[float, float, float]
    pupil: Pupil
    focus_um: float


def channels(config: Config) -> tuple[Channel, ...]:
    """Return the camera's channels; a mono camera sees the light's wavelength."""
    optics, sim = config.optics, config.sim
    told = OpticsConfig(numerical_aperture=_TOLD_NA)
    axial_um = sim.axial_colour_um * optics.depth_of_field_um / told.depth_of_field_um
    lines = RGB_WAVELENGTHS_UM if config.camera.channels == 3 else (config.illumination.wavelength_um,)
    known = RGB_WAVELENGTHS_UM[::-1]
    made = []
    for line in lines:
        r, g, b = (float(np.interp(line, known, row)) for row in ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
        index = optics.refractive_index
        pupil = Pupil(min(optics.numerical_aperture, STEEPEST_SINE * index), index, line, sim.spherical_waves)
        made.append(Channel((r, g, b), pupil, float(np.interp(line, known, (-1, 0, 1))) * axial_um))
    return tuple(made)


class Objective:
    """Images the specimen; every frame is a pure function of position, smear and noise key.

    Memory bound: one frame in float32, its margin, and two maps of the light.

    Parameters
    ----------
    config : Config
    specimen : Specimen
        On the camera's pixel grid.
    surface : FocalSurface
    """

    def __init__(self, config: Config, specimen: Specimen, surface: FocalSurface) -> None:
        self._config = config
        self._specimen = specimen
        self._surface = surface
        self._channels = channels(config)
        self._p = config.optics.pixel_size_um
        self._shape = config.camera.height_px, config.camera.width_px
        h, w = self._shape
        y, x = np.ogrid[0:h, 0:w]
        corner2 = (h * h + w * w) / 4
        self._across = ((y + 0.5) / h + (x + 0.5) / w - 1).astype(np.float32)
        self._radius2 = (((y + 0.5 - h / 2) ** 2 + (x + 0.5 - w / 2) ** 2) / corner2).astype(np.float32)

    def render(
        self,
        centre: Position,
        noise_key: tuple[int, ...],
        *,
        travel_um: tuple[float, float] = (0.0, 0.0),
        brightness: float = 1.0,
    ) -> Pixels:
        """Return one exposure.

        Parameters
        ----------
        centre : Position
            True position in the middle of the exposure.
        noise_key : tuple of int
            Seed of the noise; the same key gives the same noise.
        travel_um : (x, y)
            How far the stage went during the exposure.
        brightness : float
            1: glass is where the specimen's own glass is; 0: dark.

        Returns
        -------
        ndarray, (y, x, c), uint8 or uint16
        """
        h, w = self._shape
        if brightness == 1 and self._nothing_to_do(centre, travel_um):
            y0, x0, _, _ = self._corner(centre, h, w)
            return self._specimen.read(y0, x0, h, w)
        planes = np.zeros((len(self._channels), h, w), np.float32)
        if brightness > 0:
            self._image(centre, travel_um, planes)
        if self._config.sim.vignetting and brightness > 0:
            planes *= 1 - np.float32(self._config.sim.vignetting_corner) * self._radius2
        if drift := self._config.sim.light_drift_per_mm * centre.y_um / 1000:
            planes *= 1 + np.float32(drift) * self._across
        if brightness != 1:
            planes *= np.float32(brightness)
        return self._digitise(planes, noise_key)

    def _nothing_to_do(self, centre: Position, travel_um: tuple[float, float]) -> bool:
        """Tell whether the frame is the specimen as it is: long scans are simulated so in a tenth of the time."""
        camera, sim = self._config.camera, self._config.sim
        light = sim.vignetting or sim.light_drift_per_mm
        effects = (sim.blur, sim.noise, light, sim.mirror, sim.rotation_deg, camera.bits != 8)
        if any(effects) or camera.channels != 3 or not self._config.illumination.brightfield:
            return False
        if sim.motion_blur and self._smear(travel_um) is not None:
            return False
        return self._corner(centre, *self._shape)[2:] == (0.0, 0.0)

    def _image(self, centre: Position, travel_um: tuple[float, float], planes: NDArray[np.float32]) -> None:
        """Fill `planes` with the noiseless picture."""
        sim = self._config.sim
        defocus = centre.z_um - self._surface.z_um(centre.x_um, centre.y_um)
        margin = self._margin(defocus, travel_um)
        field = self._field(centre, margin)
        smear = self._smear(travel_um) if sim.motion_blur else None
        for plane, channel in zip(planes, self._channels, strict=True):
            picture = _mix(field, channel.weights)
            if not self._config.illumination.brightfield:
                picture = 255 - picture
            if smear is not None:
                picture = cv2.filter2D(picture, -1, smear, borderType=cv2.BORDER_REPLICATE)
            if sim.blur:
                picture = self._defocused(picture, channel, defocus, margin)
            inner = _crop(picture, margin)
            plane[:] = inner[:, ::-1] if sim.mirror else inner

    def _margin(self, defocus_um: float, travel_um: tuple[float, float]) -> int:
        """Return how many pixels around the field flow into it; a multiple of 8."""
        reach = 0.0
        if self._config.sim.blur:
            apart = max(abs(channel.focus_um) for channel in self._channels)
            worst = abs(defocus_um) + apart + self._config.optics.field_curvature_um
            reach = min(worst * self._channels[0].pupil.slope / self._p * 1.1 + 8, 256)
        if self._config.sim.motion_blur:
            reach += min(math.hypot(*travel_um) / self._p, _SMEAR_MAX_PX) / 2
        return 8 * math.ceil(reach / 8)

    def _field(self, centre: Position, margin: int) -> NDArray[Any]:
        """Return the sharp field with its margin, (y, x, 3), uint8 where no resampling is needed, else float32."""
        h, w = self._shape[0] + 2 * margin, self._shape[1] + 2 * margin
        if self._config.sim.rotation_deg:
            return self._turned(centre, h, w)
        y0, x0, dy, dx = self._corner(centre, h, w)
        if dy == dx == 0:
            return self._specimen.read(y0, x0, h, w)
        patch = self._specimen.read(y0 - 2, x0 - 2, h + 5, w + 5)
        shifted = cv2.sepFilter2D(patch, cv2.CV_32F, _taps(dx), _taps(dy), anchor=(2, 2))
        return np.asarray(shifted[2 : 2 + h, 2 : 2 + w])

    def _corner(self, centre: Position, h: int, w: int) -> tuple[int, int, float, float]:
        """Return the whole pixel at or before a field's corner, and how far beyond it the corner lies: y, x, dy, dx."""
        top, left = centre.y_um / self._p - h / 2, centre.x_um / self._p - w / 2
        y0, x0 = math.floor(top + 1e-6), math.floor(left + 1e-6)
        dy, dx = top - y0, left - x0
        return (y0, x0, 0.0, 0.0) if abs(dy) < 1e-6 and abs(dx) < 1e-6 else (y0, x0, dy, dx)

    def _turned(self, centre: Position, h: int, w: int) -> NDArray[Any]:
        angle = math.radians(self._config.sim.rotation_deg)
        cos, sin = math.cos(angle), math.sin(angle)
        reach_y = math.ceil((abs(sin) * w + abs(cos) * h) / 2) + 3
        reach_x = math.ceil((abs(cos) * w + abs(sin) * h) / 2) + 3
        cy, cx = centre.y_um / self._p, centre.x_um / self._p
        y0, x0 = math.floor(cy) - reach_y, math.floor(cx) - reach_x
        patch = self._specimen.read(y0, x0, 2 * reach_y + 1, 2 * reach_x + 1).astype(np.float32)
        ty = cy - y0 - 0.5 - (sin * (w - 1) + cos * (h - 1)) / 2
        tx = cx - x0 - 0.5 - (cos * (w - 1) - sin * (h - 1)) / 2
        matrix = np.array([[cos, -sin, tx], [sin, cos, ty]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(patch, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def _smear(self, travel_um: tuple[float, float]) -> NDArray[np.float32] | None:
        """Return the kernel of a move during the exposure; None below a twentieth of a pixel."""
        dx, dy = travel_um[0] / self._p, travel_um[1] / self._p
        length = math.hypot(dx, dy)
        if length < 0.05:
            return None
        share = min(1.0, _SMEAR_MAX_PX / length)
        angle = math.radians(-self._config.sim.rotation_deg)
        u = (dx * math.cos(angle) - dy * math.sin(angle)) * share
        v = (dx * math.sin(angle) + dy * math.cos(angle)) * share
        half = math.ceil(max(abs(u), abs(v)) / 2) + 1
        kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float64)
        for s in np.linspace(-0.5, 0.5, 4 * math.ceil(length * share) + 1):
            y, x = half + s * v, half + s * u
            i, j = int(y), int(x)
            ys, xs = np.array([1 - y + i, y - i]), np.array([1 - x + j, x - j])
            kernel[i : i + 2, j : j + 2] += np.outer(ys, xs)
        return np.asarray(kernel / kernel.sum(), np.float32)

    def _defocused(self, picture: Plane, channel: Channel, defocus_um: float, margin: int) -> Plane:
        """Blur a plane; where the field is curved, three radial zones are blended."""
        sag = self._config.optics.field_curvature_um
        centre = defocus_um - channel.focus_um
        if sag <= 0:
            return blur(picture, channel.pupil, self._p, centre)
        share = np.pad(self._radius2, margin, mode="edge")
        zones = [blur(picture, channel.pupil, self._p, centre + k * sag / 2) for k in range(3)]
        weights = [np.maximum(0, 1 - np.abs(2 * share - k)) for k in range(3)]
        return np.asarray(sum(z * w for z, w in zip(zones, weights, strict=True)), np.float32)

    def _digitise(self, planes: NDArray[np.float32], noise_key: tuple[int, ...]) -> Pixels:
        camera = self._config.camera
        if self._config.sim.noise:
            self._add_noise(planes, noise_key)
        top = 255 if camera.bits == 8 else 65535
        scale = np.float32(top / 255)
        out = np.empty((*self._shape, len(planes)), np.uint8 if camera.bits == 8 else np.uint16)
        for i, plane in enumerate(planes):
            np.rint(plane * scale, out=plane)
            out[..., i] = np.clip(plane, 0, top, out=plane)
        return out

    def _add_noise(self, planes: NDArray[np.float32], key: tuple[int, ...]) -> None:
        """Add shot and read noise; the Poisson law as a Gaussian of the same variance."""
        sim = self._config.sim
        electrons = np.float32(sim.full_well_electrons / self._config.camera.gain / 255)
        rng = np.random.Generator(np.random.SFC64(list(key)))
        variance = np.float32((sim.read_noise_electrons / float(electrons)) ** 2)
        for plane in planes:
            grain = rng.standard_normal(plane.shape, np.float32)
            grain *= np.sqrt(np.maximum(plane, 0) / electrons + variance)
            plane += grain


def blur(picture: Plane, pupil: Pupil, pixel_size_um: float, defocus_um: float) -> Plane:
    """Blur a plane by defocus; far from focus on a coarser grid, which a wide disc allows.

    Parameters
    ----------
    picture : ndarray, (y, x), float32
    pupil : Pupil
    pixel_size_um : float
    defocus_um : float
        Rounded, so that kernels are computed once: to 0.05 um, less where the depth of field is less.

    Returns
    -------
    ndarray, (y, x), float32
    """
    step_um = _FOCUS_STEP_UM * min(1.0, (_TOLD_NA / pupil.numerical_aperture) ** 2)
    rounded = round(defocus_um / step_um) * step_um
    h, w = picture.shape
    if abs(rounded) * pupil.slope / pixel_size_um > _COARSE_PX and min(h, w) >= 32:
        half = cv2.resize(picture[: h // 2 * 2, : w // 2 * 2], (w // 2, h // 2), interpolation=cv2.INTER_AREA)
        coarse = blur(half, pupil, 2 * pixel_size_um, rounded)
        back = cv2.resize(coarse, (w // 2 * 2, h // 2 * 2), interpolation=cv2.INTER_LINEAR)
        return np.pad(back, ((0, h % 2), (0, w % 2)), mode="edge") if (h % 2 or w % 2) else back
    kernel = defocus_kernel(pupil, pixel_size_um, round(rounded, 6))
    return np.asarray(cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REPLICATE))


def _mix(field: NDArray[Any], weights: tuple[float, float, float]) -> Plane:
    if max(weights) == 1.0:
        return np.ascontiguousarray(field[..., weights.index(1.0)], np.float32)
    return np.asarray(field.astype(np.float32) @ np.array(weights, np.float32))


def _crop(picture: Plane, margin: int) -> Plane:
    return picture[margin : picture.shape[0] - margin, margin : picture.shape[1] - margin]


def _taps(shift: float) -> NDArray[np.float64]:
    """Six Lanczos taps that read `shift` pixels further, 0 <= shift < 1; the third is the pixel itself."""
    at = np.arange(-2, 4) - shift
    taps = np.sinc(at) * np.sinc(at / 3)
    return np.asarray(taps / taps.sum())
