"""The focus network on this instrument: a short stack of known distances on textured tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import numpy as np

from edge_scanner.calibrate.axes import NoTextureError, spots
from edge_scanner.calibrate.probe import Probe
from edge_scanner.errors import LimitsError
from edge_scanner.focus.autofocus import Estimator
from edge_scanner.focus.calibration import FocusCalibration, fitted
from edge_scanner.focus.classical import ClassicalFocus
from edge_scanner.focus.model import ModelFile
from edge_scanner.focus.samples import reference_unit
from edge_scanner.plan import ScanRegion
from edge_scanner.tile import Pixels

TILES = 4
PLANES = 9
REACH_UM = 6.0
"""How far the stack goes from focus, micrometres of NA 0.75, no further than `focus.range_um`."""


def measure_focus(probe: Probe, region: ScanRegion) -> FocusCalibration:
    """Map what the network says to this objective's micrometres; the light must be on.

    On each of a few textured places the classical climb finds the focus, and frames at known distances from it are
    judged, as they are and with red and blue exchanged.

    Raises
    ------
    ConfigError
        No network, or an objective or a camera that does not suit it.
    NoTextureError
        When no place looked at could be focused on.
    UncalibratedError
        When the network does not tell defocus here.
    """
    config, optics = probe.config, probe.config.optics
    ModelFile.open(config.focus.model).require(optics)
    estimator = Estimator(config)
    rows = []
    for z_um, pixels in _stacks(probe, region):
        seen = [estimator.read(pixels, swapped=swapped) for swapped in (False, True)]
        rows.append([z_um, *(np.nan if s is None else s.dz_um for s in seen)])
    if not rows:
        raise NoTextureError("Nothing was found to focus on.", "Bring tissue under the objective.")
    z_um, plain_um, swapped_um = np.array(rows).T
    swapped, line = fitted(plain_um, swapped_um, z_um, optics.depth_of_field_um)
    return FocusCalibration(
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        estimator.model.file.sha256,
        optics.magnification,
        optics.numerical_aperture,
        optics.pixel_size_um,
        len(rows),
        swapped,
        line,
    )


def _stacks(probe: Probe, region: ScanRegion) -> Iterator[tuple[float, Pixels]]:
    """Yield frames of textured places with their distance above focus, as the climb of the sharpness finds it."""
    climb = ClassicalFocus(probe.config)
    reach_um = min(REACH_UM / reference_unit(probe.config.optics), probe.config.focus.range_um)
    done = 0
    for spot in spots(probe, region):
        found = climb.run(spot.z_um, partial(probe.snap, spot.x_um, spot.y_um), False).result
        if not (found.measured and found.in_focus and found.dz_um is not None):
            continue
        best_um = found.z_um - found.dz_um
        for z_um in np.linspace(-reach_um, reach_um, PLANES):
            with contextlib.suppress(LimitsError):
                yield float(z_um), probe.snap(spot.x_um, spot.y_um, best_um + float(z_um)).pixels
        done += 1
        if done == TILES:
            return
