"""Finding light, finding clean glass, and measuring the flat field on it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile

import numpy as np

from edge_scanner.calibrate.probe import Probe
from edge_scanner.errors import DeviceError, ScannerError
from edge_scanner.focus.score import texture
from edge_scanner.lamp import DARK, level
from edge_scanner.plan import ScanRegion, Target
from edge_scanner.shading import FlatField, Setting, flat_field
from edge_scanner.tile import Pixels

FRAMES = 4
SPREAD = 0.05
"""Share of the field between two frames of the same glass, so that dust does not stay in place."""
DIMMEST = 0.3
"""Of full scale; even frames below it show the slide's rim, a label or a lamp that is off."""
FAR_FIELDS = 6
LEAST_LIGHT = 0.002
"""Of full scale; a lamp that brightens a dark place by less does not shine."""

Place = tuple[float, float]


class NoGlassError(ScannerError):
    """There is no clean glass where the stage can look."""


def places(probe: Probe, region: ScanRegion) -> Iterator[Place]:
    """Yield where glass is likely, stage micrometres: round the region's corners and sides, inside it, further out."""
    pixel_um = probe.config.optics.pixel_size_um
    width, height = probe.config.camera.width_px * pixel_um, probe.config.camera.height_px * pixel_um
    x0, x1 = region.x_mm * 1000, (region.x_mm + region.width_mm) * 1000
    y0, y1 = region.y_mm * 1000, (region.y_mm + region.height_mm) * 1000

    def ring(fields: float) -> list[Place]:
        xs = x0 - fields * width, (x0 + x1) / 2, x1 + fields * width
        ys = y0 - fields * height, (y0 + y1) / 2, y1 + fields * height
        return [(x, y) for y in ys for x in xs if (x, y) != (xs[1], ys[1])]

    inside = [(x0 + a * (x1 - x0), y0 + b * (y1 - y0)) for b in (0.1, 0.5, 0.9) for a in (0.1, 0.5, 0.9)]
    yield from (place for place in (*ring(1), *inside, *ring(FAR_FIELDS)) if probe.reaches(*place))


def find_light(probe: Probe, region: ScanRegion) -> tuple[Target, float] | None:
    """Return a place and its z that are bright; None where all is dark, and the lamp still makes a difference.

    The light is on afterwards.

    Raises
    ------
    DeviceError
        When the lamp makes no difference anywhere.
    """
    light = probe.rig.illumination
    middle = (region.x_mm + region.width_mm / 2) * 1000, (region.y_mm + region.height_mm / 2) * 1000
    most = gain = 0.0
    for x, y in (middle, *places(probe, region)):
        light.on()
        bright = level(probe.snap(x, y).pixels)
        if bright >= DARK:
            return Target(0, 0, 0, x, y), probe.z_start_um
        light.off()
        most, gain = max(most, bright), max(gain, bright - level(probe.expose().pixels))
    light.on()
    if gain >= LEAST_LIGHT:
        return None
    raise DeviceError(
        f"Every frame is dark with the light on, {100 * most:.1f} % of full scale at most.",
        "Check the lamp, its power, shutter and filters; in fluorescence set illumination.brightfield to false.",
    )


def measure_flat_field(probe: Probe, region: ScanRegion) -> FlatField:
    """Measure the flat field on the first clean glass found, and the dark level with the light off.

    The light is on at the start and afterwards.

    Raises
    ------
    NoGlassError
        When no place looked at is clean glass.
    """
    frames = _glass(probe, region)
    light = probe.rig.illumination
    light.off()
    try:
        dark = probe.expose().pixels
    finally:
        light.on()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return flat_field(frames, dark, Setting.of(probe.config), now)


def _glass(probe: Probe, region: ScanRegion) -> list[Pixels]:
    """Return frames of the first place that is clean glass."""
    for x, y in places(probe, region):
        frames = list(takewhile(partial(_is_glass, probe), _around(probe, x, y)))
        if len(frames) == FRAMES:
            return frames
    raise NoGlassError("No clean glass was found to measure the flat field on.", "Clean the slide beside the tissue.")


def _around(probe: Probe, x_um: float, y_um: float) -> Iterator[Pixels]:
    """Yield frames of neighbouring places, nearest first."""
    camera, step_um = probe.config.camera, SPREAD * probe.config.optics.pixel_size_um
    for k in range(FRAMES):
        at = x_um + k * step_um * camera.width_px, y_um + k * step_um * camera.height_px
        if probe.reaches(*at):
            yield probe.snap(*at).pixels


def _is_glass(probe: Probe, pixels: Pixels) -> bool:
    bright = float(pixels.mean()) >= DIMMEST * float(np.iinfo(pixels.dtype).max)
    return bright and texture(pixels) < probe.config.focus.blank_texture
