"""The driver `sangaboard`: OpenFlexure's Sangaboard, firmware v1; it moves by steps, relative only.

It has no reference switches that firmware v1 homes to: `home` takes the place where the stage stands as
`stage.x_home_mm` and so on, so bring it there by hand first. A relative move is never repeated.
"""

from __future__ import annotations

import re

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.devices.serial_stage import REPLY_S, Report, SerialStage
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.geometry import Position

STEP_UM = (0.07, 0.07, 0.05)
"""One step of the usual OpenFlexure stage; set `stage.x_step_um` and so on to what was measured."""

BOOT_S = 4.0
"""Opening the port may reset the board, which hears nothing until it has booted; GRBL's boards are given as long."""

_WHERE = re.compile(r"(-?\d+) (-?\d+) (-?\d+)")
_QUIET_S = 0.05


class SangaboardStage(SerialStage):
    """A Sangaboard, told not to block while it moves."""

    baud = 115_200
    absolute = False

    def __init__(self, config: Config, clock: Clock, line: SerialLine | None = None) -> None:
        super().__init__(config, clock, line)
        stage = config.stage
        given = (stage.x_step_um, stage.y_step_um, stage.z_step_um)
        self._steps_um = tuple(own or usual for own, usual in zip(given, STEP_UM, strict=True))

    def _identify(self) -> str:
        self._line.send(b"stop\n")
        self._line.drain(4 * _QUIET_S)
        deadline_s = self._clock.now_s() + BOOT_S
        while self._clock.now_s() < deadline_s:
            version = self._ask("version")
            if version is not None and version.startswith("Sangaboard Firmware v"):
                return version
            self._line.sleep(_QUIET_S)
        raise DeviceError("What is at the port does not answer like a Sangaboard.", "Check stage.port.")

    def _home(self) -> None:
        self._line.drain(_QUIET_S)
        if self._ask("blocking_moves false") != "done.":
            raise DeviceError("The Sangaboard cannot move without blocking.", "Firmware v1 is needed.")
        if self._ask("zero") != "position reset to 0 0 0":
            raise DeviceError("The Sangaboard did not set its position to zero.", "Home again.")

    def _query(self) -> Report | None:
        moving = self._ask("moving?")
        where = _WHERE.fullmatch(self._ask("p?") or "") if moving in ("true", "false") else None
        if where is None:
            return None
        steps = (int(text) * um for text, um in zip(where.groups(), self._steps_um, strict=True))
        return Report(moving == "false", Position(*steps))

    def _send(self, raw: Position) -> None:
        """Send the difference in whole steps."""
        here = self._here
        goals = zip((raw.x_um, raw.y_um, raw.z_um), (here.x_um, here.y_um, here.z_um), self._steps_um, strict=True)
        steps = (round(goal / um) - round(at / um) for goal, at, um in goals)
        self._ask("mr {} {} {}".format(*steps))  # whether it was heard, the position tells

    def _halt_packet(self) -> bytes:
        return b"stop\n"

    def _ask(self, command: str) -> str | None:
        self._line.clear()
        self._line.send(command.encode() + b"\n")
        answer = self._line.read_line(REPLY_S)
        if answer is None:
            self._line.drain(_QUIET_S)
        return answer


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the stage behind a Sangaboard."""
    return SangaboardStage(config, clock)
