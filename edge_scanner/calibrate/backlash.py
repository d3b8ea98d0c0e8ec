"""Backlash: the same target approached from either side, and how far apart the two pictures lie."""

from __future__ import annotations

from edge_scanner.calibrate.axes import NoTextureError, Spot, StageAxes, gray
from edge_scanner.calibrate.probe import Probe
from edge_scanner.register.pairwise import match

APPROACH_UM = 60.0
"""Length of the approach; more than any backlash."""


def measure_backlash(probe: Probe, axes: StageAxes, spot: Spot) -> tuple[float, float]:
    """Return the backlash (x, y) in stage micrometres: how much further an approach from high values ends.

    Raises
    ------
    NoTextureError
        When the two pictures cannot be compared.
    """
    x, y = (_play(probe, axes, spot, approach) for approach in ((APPROACH_UM, 0.0), (0.0, APPROACH_UM)))
    return x[0], y[1]


def _play(probe: Probe, axes: StageAxes, spot: Spot, approach: tuple[float, float]) -> tuple[float, float]:
    """Return the displacement (x, y), micrometres, between approaches along a direction from either end."""
    here = spot.x_um, spot.y_um, spot.z_um
    low = gray(probe.snap(*here, via=(-approach[0], -approach[1])).pixels)
    high = gray(probe.snap(*here, via=approach).pixels)
    found = match(low, high, APPROACH_UM / probe.config.optics.pixel_size_um)
    if not found.trusted:
        raise NoTextureError("Backlash cannot be seen here.", "Bring tissue under the objective.")
    return axes.to_um(found.dy_px, found.dx_px)
