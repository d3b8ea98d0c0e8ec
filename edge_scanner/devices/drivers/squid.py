"""The driver `squid`: the Squid / Cephla microcontroller, stage and light.

Its firmware has no halt: `stop` asks for a relative move of nothing on each axis, which is the best it can do. Its own
watchdog puts the light off when the host has been silent for a minute.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from itertools import cycle

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.illumination import ControllerLight, Illumination
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.devices.serial_stage import REPLY_S, Report, SerialStage
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import ConfigError, DeviceError
from edge_scanner.geometry import Position

_log = logging.getLogger(__name__)

REPORT_BYTES = 24
XY_STEP_UM = 2540 / 200 / 16
Z_STEP_UM = 300 / 200 / 16

_MOVE_BY = (0, 1, 2)
_MOVE_TO = (6, 7, 8)
_HOME, _SET_LIMIT, _SET_SPEED, _HEARTBEAT, _INITIALISE, _RESET = 5, 9, 22, 42, 254, 255
_LIGHT_ON, _LIGHT_OFF, _SET_LIGHT, _SET_ARRAY, _PORTS_OFF, _WATCHDOG = 10, 11, 12, 13, 39, 40
_LAST_ARRAY = 8
"""Sources up to this are patterns of the LED array, which take a colour; the others are ports, which take a level."""
_WATCHDOG_MS = 60_000
_AXIS_Z, _AXES_XY = 2, 4
_LIMIT_CODES = ((0, 1), (2, 3), (4, 5))
_BUSY, _FAILED = 1, 4
_ANY = -1


def crc8(data: bytes) -> int:
    """Return the CRC-8 (polynomial 0x07, start 0) of some bytes."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc


def packet(number: int, opcode: int, *body: int) -> bytes:
    """Return a command: id, opcode, up to five bytes, CRC-8.

    Parameters
    ----------
    number : int
        Its id, 0 to 255.
    opcode : int
    *body : int
        Bytes 2 to 6; zeros where fewer are given.
    """
    data = bytes((number, opcode, *body)).ljust(7, b"\0")
    return data + bytes((crc8(data),))


def signed(value: int) -> bytes:
    """Return a signed 32-bit number, high byte first."""
    return value.to_bytes(4, "big", signed=True)


def set_speed(number: int, axis: int, speed_mm_s: float, acceleration_mm_s2: float) -> bytes:
    """Return the command that sets an axis' largest speed and acceleration, as far as the protocol's numbers go."""
    speed = min(round(speed_mm_s * 100), 0xFFFF)
    acceleration = min(round(acceleration_mm_s2 * 10), 0xFFFF)
    return packet(number, _SET_SPEED, axis, *speed.to_bytes(2, "big"), *acceleration.to_bytes(2, "big"))


class SquidStage(SerialStage):
    """A Squid controller; it reports by itself every 10 ms, under the id of the last command."""

    baud = 2_000_000

    def __init__(self, config: Config, clock: Clock, line: SerialLine | None = None) -> None:
        super().__init__(config, clock, line)
        stage = config.stage
        self._steps_um = (
            stage.x_step_um or XY_STEP_UM,
            stage.y_step_um or XY_STEP_UM,
            stage.z_step_um or Z_STEP_UM,
        )
        self._numbers = cycle(range(1, 256))
        self._order = threading.Lock()
        self._number = self._version = _ANY

    def light_on(self, source: int, level: float) -> None:
        """Switch a light on, 0 to 1 of its full brightness; the scan's thread.

        Raises
        ------
        DeviceError
            When the controller does not take the command.
        """
        if source <= _LAST_ARRAY:
            self._command(_SET_ARRAY, source, *3 * (round(255 * level),))
        else:
            self._command(_SET_LIGHT, source, *round(0xFFFF * level).to_bytes(2, "big"))
        self._command(_WATCHDOG, *signed(_WATCHDOG_MS))
        self._command(_LIGHT_ON)
        if self._read() is None:
            raise DeviceError("The Squid controller did not switch the light on.", "Check the cable, then reset.")

    def light_off(self) -> None:
        """Switch every light off; from any thread, halted or not. Where the line is lost nothing can be done."""
        if not self._line.is_open:
            return
        with self._order:
            first, self._number = next(self._numbers), next(self._numbers)
            try:
                self._line.urgent(packet(first, _LIGHT_OFF) + packet(self._number, _PORTS_OFF))
            except DeviceError as error:
                _log.error("The light could not be switched off: %s", error)

    def _identify(self) -> str:
        self._number, self._version = _ANY, _ANY
        version = self._version = self._first_version()
        for opcode in (_RESET, _INITIALISE):
            self._command(opcode)
            if self._read() is None:
                raise DeviceError("The Squid controller does not take commands.", "Check the cable.")
        for axis in (0, 1):
            self._number = next(self._numbers)
            speed, acceleration = self._stage.speed_mm_s, self._stage.acceleration_mm_s2
            self._line.send(set_speed(self._number, axis, speed, acceleration))
        return f"Squid firmware {version >> 4}.{version & 15}"

    def _home(self) -> None:
        self._line.clear()
        stage, limits = self._stage, self._limits
        z_down = 2 * stage.z_home_um < limits.z_min_um + limits.z_max_um
        x_down = 2000 * stage.x_home_mm < limits.x_min_um + limits.x_max_um
        y_down = 2000 * stage.y_home_mm < limits.y_min_um + limits.y_max_um
        for body in ((_AXIS_Z, int(z_down)), (_AXES_XY, int(x_down), int(y_down))):
            self._command(_HOME, *body)
            self._await_done()

    def _ping(self) -> None:
        self._command(_HEARTBEAT)

    def _homed(self, low: Position, high: Position) -> None:
        """Set the controller's own limits; it clamps relative moves to them."""
        pairs = zip(_LIMIT_CODES, self._counts(low), self._counts(high), strict=True)
        for (upper, lower), least, most in pairs:
            self._command(_SET_LIMIT, upper, *signed(most))
            self._command(_SET_LIMIT, lower, *signed(least))

    def _query(self) -> Report | None:
        """Take the next fresh report that answers the last command."""
        self._line.clear()
        report = self._next_report()
        if report is None:
            return None
        if report[1] == _FAILED:
            raise DeviceError("The Squid controller could not carry out a command.", "Check the axes, then home.")
        counts = (int.from_bytes(report[k : k + 4], "big", signed=True) for k in (2, 6, 10))
        at = Position(*(n * step for n, step in zip(counts, self._steps_um, strict=True)))
        return Report(report[1] != _BUSY, at)

    def _send(self, raw: Position) -> None:
        for opcode, counts in zip(_MOVE_TO, self._counts(raw), strict=True):
            self._command(opcode, *signed(counts))

    def _halt_packet(self) -> bytes:
        return b"".join(packet(next(self._numbers), opcode) for opcode in _MOVE_BY)

    def _command(self, opcode: int, *body: int) -> None:
        with self._order:  # reports answer the command that came last, whoever sent it
            self._number = next(self._numbers)
            self._line.send(packet(self._number, opcode, *body))

    def _counts(self, raw: Position) -> tuple[int, ...]:
        lengths = (raw.x_um, raw.y_um, raw.z_um)
        return tuple(round(length / step) for length, step in zip(lengths, self._steps_um, strict=True))

    def _await_done(self) -> None:
        deadline_s = self._clock.now_s() + self._stage.home_timeout_s
        while self._clock.now_s() < deadline_s:
            report = self._query()
            if report is not None and report.idle:
                return
        raise DeviceError("The Squid controller did not finish homing in time.", "Check the limit switches.")

    def _first_version(self) -> int:
        """Return the firmware's version once two reports in a row agree on it."""
        self._line.clear()
        before = None
        for _ in range(6):
            report = self._next_report()
            if report is not None and report[22] == before:
                return report[22]
            before = report[22] if report is not None else None
        raise DeviceError("What is at the port does not report like a Squid.", "Check stage.port and stage.driver.")

    def _next_report(self) -> bytes | None:
        """Return the next whole report under the last command's id (any while none was sent)."""
        deadline_s = self._clock.now_s() + REPLY_S
        came = bytearray()
        while (left_s := deadline_s - self._clock.now_s()) > 0:
            came += self._line.receive(left_s)
            for at in range(len(came) - REPORT_BYTES + 1):
                report = bytes(came[at : at + REPORT_BYTES])
                if self._fits(report):
                    return report
            del came[: max(0, len(came) - REPORT_BYTES + 1)]
        return None

    def _fits(self, report: bytes) -> bool:
        """Tell whether bytes are a report to the last command; a shifted window would pass the CRC once in 256."""
        mine = self._number in (_ANY, report[0]) and self._version in (_ANY, report[22])
        return mine and report[1] <= _FAILED and not any(report[19:22]) and crc8(report) == 0


def make_illumination(config: Config, clock: Clock, stage: Stage) -> Illumination:  # noqa: ARG001
    """Return a light on the stage's controller: `illumination.source` is the firmware's number of it.

    Raises
    ------
    ConfigError
        When the stage is another one.
    """
    if not isinstance(stage, SquidStage):
        raise ConfigError("illumination.driver squid needs stage.driver squid.", "They share one controller.")
    return ControllerLight(
        partial(stage.light_on, config.illumination.source, config.illumination.level), stage.light_off
    )


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the stage behind a Squid controller."""
    return SquidStage(config, clock)
