"""The driver `prior`: Prior ProScan, `COMP 0`; x and y absolute, z relative to where it was read."""

from __future__ import annotations

import re

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.devices.serial_stage import REPLY_S, Report, SerialStage
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.geometry import Position

STEP_UM = (1.0, 1.0, 0.1)
"""One unit of the usual stage and focus drive; `stage.x_step_um` and so on overrule it."""

_WHERE = re.compile(r"(-?\d+),(-?\d+),(-?\d+)")
_CLEAR = 1000
_QUIET_S = 0.05
_POLL_S = 0.05


class PriorStage(SerialStage):
    """A ProScan controller. Its replies to moves come at their end and are not waited for."""

    baud = 9600
    absolute = False  # z is relative

    def __init__(self, config: Config, clock: Clock, line: SerialLine | None = None) -> None:
        super().__init__(config, clock, line)
        stage = config.stage
        given = (stage.x_step_um, stage.y_step_um, stage.z_step_um)
        self._steps_um = tuple(own or usual for own, usual in zip(given, STEP_UM, strict=True))

    def _identify(self) -> str:
        self._line.send(b"K\r")
        self._line.drain(4 * _QUIET_S)
        if self._ask("COMP 0") != "0" or _WHERE.fullmatch(self._ask("P") or "") is None:
            raise DeviceError("What is at the port does not answer like a ProScan.", "Check stage.port.")
        return "Prior ProScan"

    def _home(self) -> None:
        """Run to the switches, then call the place something but zero, where a reset controller believes to be."""
        self._line.drain(_QUIET_S)
        self._line.send(b"SIS\r")
        deadline_s = self._clock.now_s() + self._stage.home_timeout_s
        rests = 0
        while rests < 2:
            self._line.sleep(_POLL_S)
            rests = rests + 1 if self._ask("$") == "0" else 0
            if self._clock.now_s() > deadline_s:
                raise DeviceError("The ProScan did not finish homing in time.", "Check the limit switches.")
        if self._ask(f"PS,{_CLEAR},{_CLEAR}") != "0":
            raise DeviceError("The ProScan did not set its position.", "Home again.")

    def _query(self) -> Report | None:
        mask = self._ask("$")
        where = _WHERE.fullmatch(self._ask("P") or "") if mask is not None and mask.isdigit() else None
        if where is None:
            return None
        units = (int(text) * um for text, um in zip(where.groups(), self._steps_um, strict=True))
        return Report(mask == "0", Position(*units))

    def _send(self, raw: Position) -> None:
        here = self._here
        x, y, z = (round(um / step) for um, step in zip((raw.x_um, raw.y_um, raw.z_um), self._steps_um, strict=True))
        rise = z - round(here.z_um / self._steps_um[2])
        self._line.send(f"G,{x},{y}\r".encode())
        if rise:
            self._line.send(f"{'U' if rise > 0 else 'D'},{abs(rise)}\r".encode())

    def _halt_packet(self) -> bytes:
        return b"K\r"

    def _ask(self, command: str) -> str | None:
        """Return the answer; the `R` of a move that has ended meanwhile is passed over."""
        self._line.clear()
        self._line.send(command.encode() + b"\r")
        deadline_s = self._clock.now_s() + REPLY_S
        while (answer := self._line.read_line(deadline_s - self._clock.now_s(), b"\r")) is not None:
            if answer.startswith("E,"):
                raise DeviceError(f"The ProScan answered {command!r} with error {answer}.", "See its manual.")
            if answer != "R":
                return answer
        return None


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the stage behind a ProScan."""
    return PriorStage(config, clock)
