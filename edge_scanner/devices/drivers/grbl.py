"""The driver `grbl`: GRBL 1.1 with homing switches, in absolute machine coordinates by jogging; light on the spindle.

z may be scaled: with `stage.z_scale` 10 the controller's millimetre is 0.1 mm, so that three decimals are 0.1 um. The
lamp hangs on the spindle output (PWM): every halt of the stage is a reset, which puts it off as well.
"""

from __future__ import annotations

import logging
import re
from functools import partial

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.illumination import ControllerLight, Illumination
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.devices.serial_stage import REPLY_S, Report, SerialStage
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import ConfigError, DeviceError
from edge_scanner.geometry import Position

_log = logging.getLogger(__name__)

BANNER_S = 4.0
"""Opening the port may reset the board, which then takes 1.4 s to greet."""

_RESET = b"\x18"
_JOG_CANCEL = b"\x85"
_STATUS = re.compile(r"<(\w+)(?::\d)?\|MPos:(-?\d+\.\d{3}),(-?\d+\.\d{3}),(-?\d+\.\d{3})(?:\|[^<>]*)?>")
_SETTING = re.compile(r"^\$(\d+)=(\d+)")
_SPINDLE = re.compile(r"\|FS:\d+,(\d+)")
_TOP_SPEED, _LASER_MODE = "30", "32"
_TRIES = 3
_ALARMS = {"1": "a limit switch was hit", "2": "a target lay beyond its travel", "3": "it was reset while moving"}
_HOMING = frozenset("6789")


class GrblStage(SerialStage):
    """A GRBL 1.1 controller; `$22=1` (homing) is required, `$20=1` (soft limits) advised."""

    baud = 115_200

    def __init__(self, config: Config, clock: Clock, line: SerialLine | None = None) -> None:
        super().__init__(config, clock, line)
        self._settings: dict[str, str] = {}
        self._spindle = 0

    def light_on(self, level: float) -> None:
        """Turn the spindle output on, 0 to 1 of its top speed, and read it back; the scan's thread, stage homed.

        Raises
        ------
        DeviceError
            When the controller is set up for a laser, or the output does not follow.
        """
        if self._settings.get(_LASER_MODE, "0") != "0":
            raise DeviceError(
                "The GRBL controller is in laser mode, which darkens the lamp whenever nothing is cut.", "Set $32=0."
            )
        wanted = round(level * int(self._settings.get(_TOP_SPEED, "1000")))
        for _ in range(_TRIES):
            self._pending()
            self._line.send(f"M3 S{wanted}\n".encode())
            if self._query() is not None and self._spindle == wanted:
                return
        raise DeviceError("The GRBL controller did not switch the light on.", "Check that it has a spindle output.")

    def light_off(self) -> None:
        """Turn the spindle output off; from any thread, halted or not. Where the line is lost nothing can be done.

        GRBL refuses it during a jog; what ends a jog early is the halt, which puts the output off by itself.
        """
        if self._line.is_open:
            try:
                self._line.urgent(b"M5\n")
            except DeviceError as error:
                _log.error("The light could not be switched off: %s", error)

    def _identify(self) -> str:
        self._reset()
        version = next((line for line in self._ask("$I") if line.startswith("[VER:")), None)
        settings = self._settings = dict(pair for line in self._ask("$$") for pair in _SETTING.findall(line))
        if version is None:
            raise DeviceError("The controller greets like GRBL but tells no version.", "GRBL 1.1 is needed.")
        if settings.get("22") != "1":
            raise DeviceError("The GRBL controller has homing switched off.", "Fit limit switches and set $22=1.")
        if settings.get("13", "0") != "0" or not int(settings.get("10", "1")) & 1:
            raise DeviceError("The GRBL controller reports inches or work positions.", "Set $13=0 and $10=1.")
        return f"GRBL {version[5:].rstrip(']')}"

    def _home(self) -> None:
        self._reset()
        self._line.send(b"$H\n")
        deadline_s = self._clock.now_s() + self._stage.home_timeout_s
        while (line := self._line.read_line(deadline_s - self._clock.now_s())) is not None:
            if line == "ok":
                return
            self._watch(line)
            if line.startswith("error:"):
                raise DeviceError(f"GRBL refused to home ({line}).", "Check $22 and the limit switches.")
        raise DeviceError("GRBL did not finish homing in time.", "Check the limit switches and stage.home_timeout_s.")

    def _query(self) -> Report | None:
        self._pending()
        self._line.send(b"?")
        deadline_s = self._clock.now_s() + REPLY_S
        while (line := self._line.read_line(deadline_s - self._clock.now_s())) is not None:
            self._watch(line)
            if line.startswith("<"):
                return self._report(line)
        return None

    def _send(self, raw: Position) -> None:
        self._pending()
        x, y, z = raw.x_um / 1000, raw.y_um / 1000, raw.z_um / 1000 * self._stage.z_scale
        feed = self._stage.speed_mm_s * 60
        self._line.send(f"$J=G53 G21 G90 X{x:.4f} Y{y:.4f} Z{z:.4f} F{feed:.1f}\n".encode())
        deadline_s = self._clock.now_s() + REPLY_S
        while (line := self._line.read_line(deadline_s - self._clock.now_s())) is not None:
            self._watch(line)
            if line == "error:15":
                raise DeviceError("GRBL refused a target beyond its own travel.", "Match $130-$132 and the limits.")
            if line == "error:9":
                raise DeviceError("GRBL is locked.", "Home it.")
            if line == "ok" or line.startswith("error:"):
                return  # after another error the controller rests elsewhere, which `wait` sees

    def _halt_packet(self) -> bytes:
        """Cancel the jog, then reset: the second ends whatever the first cannot, homing above all."""
        return _JOG_CANCEL + _RESET

    def _reset(self) -> None:
        """Reset, wait for the greeting, and let what was under way die down."""
        self._line.clear()
        self._line.send(_RESET)
        deadline_s = self._clock.now_s() + BANNER_S
        while (line := self._line.read_line(deadline_s - self._clock.now_s())) is not None:
            if line.startswith("Grbl 1."):
                self._line.drain(0.1)
                return
        raise DeviceError("What is at the port does not answer like GRBL 1.1.", "Check stage.port and stage.driver.")

    def _ask(self, command: str) -> list[str]:
        """Return the lines of an answer up to its `ok`."""
        self._line.send(command.encode() + b"\n")
        lines: list[str] = []
        while (line := self._line.read_line(REPLY_S)) is not None:
            if line == "ok":
                return lines
            lines.append(line)
        raise DeviceError(f"GRBL did not answer {command}.", "Check the cable.")

    def _pending(self) -> None:
        """Look through what came unasked."""
        while (line := self._line.read_line(0.0)) is not None:
            self._watch(line)

    def _watch(self, line: str) -> None:
        """Raise on what makes the position untrusted."""
        if line.startswith("ALARM:"):
            code = line[6:].strip()
            why = "homing failed" if code in _HOMING else _ALARMS.get(code, "see its manual")
            raise DeviceError(f"GRBL gave alarm {code}: {why}.", "Clear the cause, then reset and home.")
        if line.startswith("Grbl "):
            raise DeviceError("GRBL was reset.", "Check its power, then reset and home.")

    def _report(self, line: str) -> Report | None:
        match = _STATUS.fullmatch(line)
        if match is None:
            return None
        if match[1] in ("Alarm", "Door", "Sleep"):
            raise DeviceError(f"GRBL is in state {match[1]}.", "Clear the cause, then reset and home.")
        if spindle := _SPINDLE.search(line):
            self._spindle = int(spindle[1])
        x, y, z = (float(text) * 1000 for text in match.groups()[1:])
        return Report(match[1] == "Idle", Position(x, y, z / self._stage.z_scale))


def make_illumination(config: Config, clock: Clock, stage: Stage) -> Illumination:  # noqa: ARG001
    """Return the lamp on the spindle output of the stage's controller.

    Raises
    ------
    ConfigError
        When the stage is another one.
    """
    if not isinstance(stage, GrblStage):
        raise ConfigError("illumination.driver grbl needs stage.driver grbl.", "They share one controller.")
    return ControllerLight(partial(stage.light_on, config.illumination.level), stage.light_off)


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the stage behind a GRBL controller."""
    return GrblStage(config, clock)
