"""The focus surface: where focus is to be expected, from where it was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PLANE_POINTS = 256
"""The plane is fitted to the nearest so many points; a bound on the work of one prediction."""

NEIGHBOURS = 6
"""Points whose departure from the plane corrects it locally."""

OUTLIER_SIGMA = 4.0
"""Points further from the plane than this many robust standard deviations do not count."""

LEAST_SIGMA_UM = 0.5
"""The robust standard deviation is never taken as smaller than this."""

FLATNESS_UM = 50.0
"""Prior of the plane's slopes: the noise of a measured z, 0.1 um, over the slope to expect, 2 um per mm."""


class FocusSurface:
    """A robust plane with local corrections.

    Depends on nothing but the points and the order in which they were added. Holds 24 bytes a point.
    """

    def __init__(self) -> None:
        self._points = np.empty((64, 3))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, x_um: float, y_um: float, z_um: float) -> None:
        """Add a measured point; one that is not finite is ignored."""
        if not np.isfinite((x_um, y_um, z_um)).all():
            return
        if self._count == len(self._points):
            self._points = np.concatenate([self._points, np.empty_like(self._points)])
        self._points[self._count] = x_um, y_um, z_um
        self._count += 1

    def predict(self, x_um: float, y_um: float) -> float | None:
        """Return the expected z at a stage point, micrometres; None before the first point."""
        if self._count == 0:
            return None
        points = self._points[: self._count]
        distance = np.hypot(points[:, 0] - x_um, points[:, 1] - y_um)
        if self._count > PLANE_POINTS:
            near = np.sort(np.argpartition(distance, PLANE_POINTS)[:PLANE_POINTS])
            points, distance = points[near], distance[near]
        xy = points[:, :2] - (x_um, y_um)
        plane, sound = _robust_plane(xy, points[:, 2])
        left = (points[:, 2] - _height(plane, xy))[sound]
        closest = np.argsort(distance[sound], kind="stable")[:NEIGHBOURS]
        weight = 1.0 / (distance[sound][closest] + 1.0) ** 2
        return float(plane[0] + weight @ left[closest] / weight.sum())


def _height(plane: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    z: NDArray[np.float64] = plane[0] + xy @ plane[1:]
    return z


def _robust_plane(xy: NDArray[np.float64], z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Fit a plane, drop what lies off it by the median absolute deviation, and fit again.

    Returns
    -------
    plane : ndarray, (3,)
        Height at the origin and slopes.
    sound : ndarray of bool, (n,)
        The points that count.
    """
    sound = np.ones(len(z), dtype=np.bool_)
    plane = _plane(xy, z)
    for _ in range(3):
        left = z - _height(plane, xy)
        centre = np.median(left[sound])
        sigma = max(1.4826 * float(np.median(np.abs(left[sound] - centre))), LEAST_SIGMA_UM)
        now = np.abs(left - centre) <= OUTLIER_SIGMA * sigma
        if np.array_equal(now, sound):
            break
        sound = now
        plane = _plane(xy[sound], z[sound])
    return plane, sound


def _plane(xy: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit height and slopes about the centre of the points, the slopes drawn to zero where the points do not spread."""
    centre = xy.mean(axis=0)
    spread = xy - centre
    slopes = np.linalg.solve(spread.T @ spread + FLATNESS_UM**2 * np.eye(2), spread.T @ (z - z.mean()))
    return np.array([z.mean() - centre @ slopes, *slopes])
