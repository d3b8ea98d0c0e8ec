"""The driver `asi`: ASI MS-2000 and Tiger controllers, unit 0.1 um."""

from __future__ import annotations

import re

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.serial_stage import REPLY_S, Report, SerialStage
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.geometry import Position

UNITS_PER_UM = 10
_WHERE = re.compile(r":A((?: -?\d+(?:\.\d+)?){3})")
_REFUSED = re.compile(r":N-(\d+)")
_FATAL = {"2": "no such axis", "4": "a value out of range", "5": "the operation failed", "21": "it was halted"}
_QUIET_S = 0.05
_POLL_S = 0.05
_CLEAR_UM = 2e6
"""Further from zero than the limits of a controller that was reset, which therefore refuses every target of ours."""


class AsiStage(SerialStage):
    """An ASI controller with axes X, Y and Z."""

    baud = 115_200

    def _identify(self) -> str:
        self._line.send(b"\\\r")  # whatever moves since before is not ours
        self._line.drain(_QUIET_S)
        self._ask("VB F=0")  # Tiger: answer like an MS-2000, which does not know the command
        version = self._ask("V")
        if version is None or not version.startswith(":A ") or "Version" not in version:
            raise DeviceError("What is at the port does not answer like an ASI controller.", "Check stage.port.")
        self._demand(f"S X={self._stage.speed_mm_s:g} Y={self._stage.speed_mm_s:g}")
        return f"ASI {version[3:].strip()}"

    def _home(self) -> None:
        self._line.drain(_QUIET_S)
        self._demand("! X Y Z")
        deadline_s = self._clock.now_s() + self._stage.home_timeout_s
        rests = 0
        while rests < 2:
            self._line.sleep(_POLL_S)
            rests = rests + 1 if self._ask("/") == "N" else 0
            if self._clock.now_s() > deadline_s:
                raise DeviceError("The ASI controller did not finish homing in time.", "Check the limit switches.")
        self._demand(_axes("H", self._clear_of_zero(), UNITS_PER_UM))

    def _clear_of_zero(self) -> Position:
        """Return what to call the reference, so that zero, where a reset controller believes to be, is far away."""
        stage, limits = self._stage, self._limits
        return Position(
            stage.x_home_mm * 1000 - limits.x_min_um + _CLEAR_UM,
            stage.y_home_mm * 1000 - limits.y_min_um + _CLEAR_UM,
            stage.z_home_um - limits.z_min_um + _CLEAR_UM,
        )

    def _homed(self, low: Position, high: Position) -> None:
        """Set the controller's own limits, in millimetres."""
        for command, at in (("SL", low), ("SU", high)):
            self._demand(_axes(command, at, 1e-3, 4))

    def _query(self) -> Report | None:
        busy = self._ask("/")
        where = _WHERE.fullmatch(self._ask("W X Y Z") or "") if busy in ("B", "N") else None
        if where is None:
            return None
        return Report(busy == "N", Position(*(float(text) / UNITS_PER_UM for text in where[1].split())))

    def _send(self, raw: Position) -> None:
        answer = self._ask(_axes("M", raw, UNITS_PER_UM))
        refused = _REFUSED.fullmatch(answer or "")
        if refused and refused[1] in _FATAL:
            raise DeviceError(f"The ASI controller refused a move: {_FATAL[refused[1]]}.", "Check its limits.")

    def _halt_packet(self) -> bytes:
        return b"\\\r"

    def _demand(self, command: str) -> None:
        """Send a command that may be repeated, until it is accepted.

        Raises
        ------
        DeviceError
            When it is refused or not answered.
        """
        answer = None
        for _ in range(3):
            answer = self._ask(command)
            if answer is not None and answer.startswith(":A"):
                return
        raise DeviceError(f"The ASI controller answered {command!r} with {answer!r}.", "Check the controller.")

    def _ask(self, command: str) -> str | None:
        """Return the answer to a command; None, and the line is quiet, where none came in time."""
        self._line.clear()
        self._line.send(command.encode() + b"\r")
        answer = self._line.read_line(REPLY_S)
        if answer is None:
            self._line.drain(_QUIET_S)
        return answer


def _axes(command: str, at: Position, units_per_um: float, digits: int = 0) -> str:
    """Return a command with a value for each axis."""
    values = zip("XYZ", (at.x_um, at.y_um, at.z_um), strict=True)
    return command + "".join(f" {axis}={um * units_per_um:.{digits}f}" for axis, um in values)


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the stage behind an ASI controller."""
    return AsiStage(config, clock)
