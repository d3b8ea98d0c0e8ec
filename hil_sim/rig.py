"""The make of an emulated stage: what the scenario says of the hardware."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from hil_sim.firmware.base import Firmware
from hil_sim.mechanics import Axis, Mechanics

Triple = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0)]


class StageRig(BaseModel):
    """One emulated stage; lengths in micrometres of the slide, whose corner is at (0, 0).

    Parameters
    ----------
    protocol : str
        A module of `hil_sim.firmware`.
    low_um, high_um : (x, y, z)
        Where the switches are.
    speed_um_s, acceleration_um_s2 : float
    backlash_um : float
        Play in x and y.
    start_um : (x, y, z), optional
        Where it stands at power-on; somewhere by the seed when omitted.
    seed : int
        Of the start, and of the noise.
    clock : float
        How many times faster than real its clock runs.
    firmware : dict
        More arguments of the controller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    low_um: Triple = (-2000.0, -2000.0, -300.0)
    high_um: Triple = (20_000.0, 20_000.0, 300.0)
    speed_um_s: Positive = 25_000.0
    acceleration_um_s2: Positive = 500_000.0
    backlash_um: float = Field(0.0, ge=0)
    start_um: Triple | None = None
    seed: int = 1
    clock: Positive = 1.0
    firmware: dict[str, float] = {}

    def build(self, send: Callable[[bytes], None]) -> Firmware:
        """Return the controller on its mechanics, not booted."""
        dice = random.Random(self.seed)
        axes = []
        ends = zip(self.low_um, self.high_um, strict=True)
        somewhere = tuple(low + (high - low) * dice.uniform(0.2, 0.6) for low, high in ends)
        plays = (self.backlash_um, self.backlash_um, 0.0)
        starts = self.start_um or somewhere
        for low, high, start, play in zip(self.low_um, self.high_um, starts, plays, strict=True):
            axes.append(Axis(self.speed_um_s, self.acceleration_um_s2, low, high, start, play))
        module = importlib.import_module(f"hil_sim.firmware.{self.protocol}")
        made: Firmware = module.CONTROLLER(Mechanics(axes), send, **self.firmware)
        return made
