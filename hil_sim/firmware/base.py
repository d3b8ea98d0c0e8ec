"""What an emulated controller is: bytes in, bytes out, motion on a clock that is handed in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from hil_sim.mechanics import Mechanics

BOOT_S = 1.0
"""How long a controller is deaf and dumb after a reset."""


@dataclass(slots=True)
class Faults:
    """What is wrong with the controller at the moment; the line's own faults are `hil_sim.noise`'s."""

    stuck_busy: bool = False
    idle_early: bool = False
    dead_lamp: bool = False


class Firmware(ABC):
    """A controller without a line: a pure machine of bytes and time, the same whatever drives it.

    Parameters
    ----------
    mechanics : Mechanics
    send : callable
        Takes one whole reply at a time.

    Attributes
    ----------
    lamp : float
        What it gives the lamp, 0 to 1; always 1 where it has no output for one.
    """

    def __init__(self, mechanics: Mechanics, send: Callable[[bytes], None]) -> None:
        self.mechanics = mechanics
        self.faults = Faults()
        self.halts = 0
        self.refused = 0
        self.lamp = 1.0
        self._deaf_until_s = -math.inf
        self._send = send

    @abstractmethod
    def boot(self, now_s: float) -> None:
        """Start as after power on or a hardware reset; motion stops dead and the position is forgotten."""

    @abstractmethod
    def receive(self, data: bytes, now_s: float) -> None:
        """Take bytes from the line."""

    def deafen(self, now_s: float) -> None:
        """Hear and say nothing while booting."""
        self._deaf_until_s = now_s + BOOT_S

    def is_deaf(self, now_s: float) -> bool:
        """Return whether it is booting."""
        return now_s < self._deaf_until_s

    def tick(self, now_s: float) -> None:  # noqa: B027 - nothing is due where nothing happens by itself
        """Do what is due."""

    def due_s(self) -> float:
        """Return when `tick` is wanted next."""
        return math.inf

    def hit_limit(self, now_s: float) -> None:
        """Fault: a limit switch closes."""
        self.mechanics.freeze(now_s)

    def light(self) -> float:
        """Return how bright the lamp truly is."""
        return 0.0 if self.faults.dead_lamp else self.lamp

    def is_busy(self, now_s: float) -> bool:
        """Return what it says of itself: true motion, bent by the faults."""
        if self.faults.stuck_busy:
            return True
        return not self.faults.idle_early and self.mechanics.moving(now_s)
