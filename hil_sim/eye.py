"""What a camera over an emulated stage sees: its true position, in the light that truly shines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from edge_scanner.config import Config
from edge_scanner.geometry import Position
from edge_scanner.sim.optics import Objective
from edge_scanner.sim.specimen import open_specimen
from edge_scanner.sim.surface import FocalSurface
from edge_scanner.tile import Pixels


@dataclass(frozen=True, slots=True)
class Exposure:
    """One frame, (y, x, c), and the monotonic second at which its exposure began."""

    number: int
    pixels: Pixels
    began_s: float


class Eye:
    """Exposes; one thread.

    Memory bound: one frame, and 32 bytes an exposure.

    Parameters
    ----------
    config : Config
    context : zmq.Context
    stage : str
        Side socket of the emulator.

    Attributes
    ----------
    log : list of (frame_id, x_um, y_um, z_um)
        Every exposure's true position.
    """

    def __init__(self, config: Config, context: zmq.Context[Any], stage: str) -> None:
        self._config = config
        specimen = open_specimen(config.sim, config.optics.pixel_size_um)
        self._objective = Objective(config, specimen, FocalSurface(config.sim, config.stage.limits))
        self._stage = context.socket(zmq.REQ)
        self._stage.connect(stage)
        self.log: list[tuple[int, float, float, float]] = []

    def expose(self, exposure_ms: float) -> Exposure:
        """Take a frame; what moves meanwhile is smeared."""
        began_s = time.monotonic()
        first = self._truth()
        time.sleep(max(0.0, began_s + exposure_ms / 1000 - time.monotonic()))
        last = self._truth()
        x, y, z, light = ((a + b) / 2 for a, b in zip(first, last, strict=True))
        key = (self._config.sim.seed, *(round(1000 * v) & 0xFFFF_FFFF_FFFF for v in (x, y, z)))
        travel = (last[0] - first[0], last[1] - first[1])
        picture = self._objective.render(Position(x, y, z), key, travel_um=travel, brightness=light)
        self.log.append((len(self.log) + 1, x, y, z))
        return Exposure(len(self.log), np.ascontiguousarray(picture), began_s)

    def _truth(self) -> tuple[float, float, float, float]:
        """Return where the load is, and how bright the lamp."""
        self._stage.send_json({"cmd": "truth"})
        truth: dict[str, Any] = self._stage.recv_json()  # type: ignore[assignment]
        return truth["x_um"], truth["y_um"], truth["z_um"], truth["light"]
