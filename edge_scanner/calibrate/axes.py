"""How the stage's axes lie in the picture: the 2x2 matrix, measured by moves in the shape of an L on texture."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.calibrate.probe import Probe
from edge_scanner.errors import ScannerError
from edge_scanner.focus import make_focus
from edge_scanner.focus.score import texture
from edge_scanner.plan import ScanRegion
from edge_scanner.register.pairwise import match
from edge_scanner.tile import Pixels

Strip = NDArray[np.uint8] | NDArray[np.uint16]

SHARES = (0.25, 0.45, 0.6)
"""Moves along each axis, as shares of the field's shorter side; the first is found without knowing the matrix."""
REACH = 1.5
"""How much longer than nominal the first move may look in the picture."""
REFINE_PX = 24.0
"""How far from where the first moves predict them the longer ones are looked for."""
LOOK_AT = (0.5, 0.3, 0.7, 0.1, 0.9)
MOST_PLACES = 13
DISTINGUISHABLE = 4.0
"""Standard errors by which a matrix must differ from an exact one to count as different."""
LEAST = 2e-4
"""Relative difference from an exact matrix that registration takes care of by itself."""
MOST_HOPS = 5
FINE = 2e-4
"""Relative standard error at which a matrix is known well enough: 0.01 degrees."""
DOUBT = 5e-4
"""Relative error of the matrix that a scan must be ready for: registration takes it up as tiles come in."""
COARSE = 1e-3
"""The same without focus; what is known worse is measured again in focus."""
FLOOR_PX = 0.01
UNKNOWN_PX = 1.0
LEAST_SIDE_PX = 48


class NoTextureError(ScannerError):
    """There is nothing to measure movement on."""


@dataclass(frozen=True, slots=True)
class StageAxes:
    """The matrix from stage micrometres to mosaic pixels, as in `MosaicFrame`.

    Parameters
    ----------
    xx, xy, yx, yy : float
        Pixels per micrometre.
    sigma : float
        Standard error of an entry.
    """

    xx: float
    xy: float
    yx: float
    yy: float
    sigma: float = 0.0

    def to_px(self, dx_um: float, dy_um: float) -> tuple[float, float]:
        """Return the displacement (y, x) in the picture of a displacement on the stage."""
        return self.yx * dx_um + self.yy * dy_um, self.xx * dx_um + self.xy * dy_um

    def to_um(self, dy_px: float, dx_px: float) -> tuple[float, float]:
        """Return the displacement (x, y) on the stage; the inverse of `to_px`."""
        det = self.xx * self.yy - self.xy * self.yx
        return (self.yy * dx_px - self.xy * dy_px) / det, (self.xx * dy_px - self.yx * dx_px) / det

    def exact(self, pixel_size_um: float) -> StageAxes:
        """Return the matrix of axes that run along the camera's, either way round, if this may be it; else itself."""
        k = 1 / pixel_size_um
        ideal = StageAxes(math.copysign(k, self.xx), 0.0, 0.0, math.copysign(k, self.yy))
        off = max(
            abs(self.xx - ideal.xx), abs(self.xy), abs(self.yx), abs(self.yy - ideal.yy)
        )  # fmt: skip
        return ideal if off <= max(DISTINGUISHABLE * self.sigma, LEAST * k) else self

    @property
    def pixel_size_um(self) -> float:
        """Pixel size in the stage's own unit: the side of a square of a pixel's area."""
        return 1 / math.sqrt(abs(self.xx * self.yy - self.xy * self.yx))

    @property
    def mirrored(self) -> bool:
        """Whether the picture is a mirror image of what the stage carries."""
        return self.xx * self.yy < self.xy * self.yx

    @property
    def rotation_deg(self) -> float:
        """Turn of the camera against the stage, degrees, once a mirror in x is taken out."""
        sign = -1 if self.mirrored else 1
        return math.degrees(math.atan2(sign * self.xy - self.yx, sign * self.xx + self.yy))


@dataclass(frozen=True, slots=True)
class Spot:
    """A place with texture, and what is seen there."""

    x_um: float
    y_um: float
    z_um: float
    strip: Strip


def measure_axes(probe: Probe, region: ScanRegion, *, quick: bool = True) -> tuple[StageAxes, Spot]:
    """Return the stage's axes, and the place where they were measured; the light must be on.

    Parameters
    ----------
    probe : Probe
    region : ScanRegion
        Where to look for texture.
    quick : bool
        Try without focusing first; focus only where that is not enough, or finds anything out of the ordinary.

    Raises
    ------
    NoTextureError
        When no place looked at shows enough.
    """
    for spot in spots(probe, region):
        with contextlib.suppress(NoTextureError):
            axes = axes_at(probe, spot) if quick else None
            pixel_um = probe.config.optics.pixel_size_um
            if axes and axes.sigma * pixel_um <= COARSE and axes.exact(pixel_um) is not axes:
                return axes, spot
        with contextlib.suppress(NoTextureError):
            focused = focus_at(probe, spot)
            return axes_at(probe, focused), focused
    raise NoTextureError("Nothing was found to measure the stage's axes on.", "Bring tissue under the objective.")


def spots(probe: Probe, region: ScanRegion) -> Iterator[Spot]:
    """Yield textured places of a region, not focused, from its middle outwards."""
    at = [(x, y) for x in LOOK_AT for y in LOOK_AT]
    for fx, fy in sorted(at, key=lambda f: math.hypot(f[0] - 0.5, f[1] - 0.5))[:MOST_PLACES]:
        x, y = (region.x_mm + fx * region.width_mm) * 1000, (region.y_mm + fy * region.height_mm) * 1000
        if probe.reaches(x, y):
            pixels = probe.snap(x, y).pixels
            if texture(pixels) >= probe.config.focus.blank_texture:
                yield Spot(x, y, probe.z_start_um, gray(pixels))


def focus_at(probe: Probe, spot: Spot) -> Spot:
    """Return the spot in focus, as far as the configured method brings it there."""
    outcome = make_focus(probe.config).run(spot.z_um, lambda z: probe.snap(spot.x_um, spot.y_um, z), False)
    return replace(spot, z_um=outcome.result.z_um, strip=gray(outcome.frame.pixels))


def axes_at(probe: Probe, spot: Spot) -> StageAxes:
    """Measure the matrix at a spot: the least-squares fit to moves of growing length along both axes.

    The first moves overlap with the spot itself; where the stage's own error leaves too much doubt, longer ones follow,
    hop by hop, so that the picture's displacement stays known to a fraction of a pixel while the lever grows.

    Raises
    ------
    NoTextureError
        When the moves cannot be seen.
    """
    survey = _Survey(probe, spot)
    for share in SHARES:
        survey.step(share)
    for _ in range(MOST_HOPS):
        if survey.axes.sigma * probe.config.optics.pixel_size_um <= FINE:
            break
        survey.step(SHARES[-1], hop=True)
    return survey.axes


@dataclass(frozen=True, slots=True)
class _View:
    """What is seen after a move (dx, dy) from the spot, and how far (y, x) its picture lies from the spot's."""

    dx_um: float
    dy_um: float
    y_px: float
    x_px: float
    strip: Strip


class _Survey:
    """Moves from a spot and what the picture made of them; keeps three frames."""

    def __init__(self, probe: Probe, spot: Spot) -> None:
        self._probe, self._spot = probe, spot
        optics, camera = probe.config.optics, probe.config.camera
        self._side_um = min(camera.height_px, camera.width_px) * optics.pixel_size_um
        start = _View(0.0, 0.0, 0.0, 0.0, spot.strip)
        self._start, self._ends = start, [start, start]
        self._seen = [(0.0, 0.0, 0.0, 0.0)]
        self._rough: StageAxes | None = None

    @property
    def axes(self) -> StageAxes:
        """The fit to what was seen so far."""
        return _fit(self._seen)

    def step(self, share: float, *, hop: bool = False) -> None:
        """Look a share of the field further along each axis, from the spot or from where the last hop led."""
        for axis in (0, 1):
            before = self._ends[axis] if hop else self._start
            at = self._beyond(before, axis, share * self._side_um)
            if at is None:
                continue
            strip = gray(self._probe.snap(self._spot.x_um + at[0], self._spot.y_um + at[1], self._spot.z_um).pixels)
            moved_um = at[0] - before.dx_um, at[1] - before.dy_um
            found = _displacement(before.strip, strip, self._rough, *moved_um, REACH * share * min(strip.shape))
            if found is not None:
                view = _View(*at, before.y_px + found[0], before.x_px + found[1], strip)
                self._ends[axis] = view
                self._seen.append((view.dx_um, view.dy_um, view.y_px, view.x_px))
            elif self._rough is None:
                raise NoTextureError("A move cannot be seen here.")
        self._rough = self._rough or _fit(self._seen)

    def _beyond(self, view: _View, axis: int, step_um: float) -> tuple[float, float] | None:
        """Return where a step along an axis leads, away from the spot where there is a choice; None beyond limits."""
        gone = (view.dx_um, view.dy_um)[axis]
        for sign in (1, -1) if gone == 0 else (math.copysign(1, gone),):
            dx, dy = view.dx_um + sign * step_um * (1 - axis), view.dy_um + sign * step_um * axis
            if self._probe.reaches(self._spot.x_um + dx, self._spot.y_um + dy):
                return dx, dy
        return None


def _displacement(
    first: Strip, second: Strip, rough: StageAxes | None, dx_um: float, dy_um: float, reach_px: float
) -> tuple[float, float] | None:
    """Return (y, x), how far the second picture lies from the first; None if that is not to be trusted."""
    iy, ix = (0, 0) if rough is None else (round(v) for v in rough.to_px(dx_um, dy_um))
    h, w = first.shape
    y0, y1, x0, x1 = max(0, iy), min(h, h + iy), max(0, ix), min(w, w + ix)
    if min(y1 - y0, x1 - x0) < LEAST_SIDE_PX:
        return None
    parts = first[y0:y1, x0:x1], second[y0 - iy : y1 - iy, x0 - ix : x1 - ix]
    found = match(*parts, reach_px if rough is None else REFINE_PX)
    return (iy + found.dy_px, ix + found.dx_px) if found.trusted else None


def _fit(seen: list[tuple[float, float, float, float]]) -> StageAxes:
    """Fit matrix and offset (the first place has an error too) to rows of (dx_um, dy_um, y_px, x_px)."""
    rows = np.array(seen)
    basis = np.column_stack([rows[:, :2], np.ones(len(rows))])
    theta, *_ = np.linalg.lstsq(basis, rows[:, 2:], rcond=None)
    left = rows[:, 2:] - basis @ theta
    spare = 2 * (len(rows) - 3)
    scatter_px = max(math.sqrt(float((left**2).sum()) / spare), FLOOR_PX) if spare else UNKNOWN_PX
    sigma = scatter_px * math.sqrt(float(np.linalg.pinv(basis.T @ basis).diagonal()[:2].max()))
    (yx, xx), (yy, xy) = theta[0], theta[1]
    return StageAxes(float(xx), float(xy), float(yx), float(yy), sigma)


def gray(pixels: Pixels) -> Strip:
    """Return the luminance (y, x) of a frame."""
    strip: Strip = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[..., 0]
    return strip
