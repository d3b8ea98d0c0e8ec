"""The driver `none`: a light that is always on or is switched by hand."""

from __future__ import annotations

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.illumination import Illumination, NoIllumination
from edge_scanner.devices.stage import Stage


def make_illumination(config: Config, clock: Clock, stage: Stage) -> Illumination:  # noqa: ARG001
    """Return the light that does nothing."""
    return NoIllumination()
