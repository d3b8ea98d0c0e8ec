"""What all serial stages have in common: the rules by which a move is sent, followed and believed.

A driver adds its protocol: how to tell what answers, how to home, how to send an absolute target, how to ask whether
the controller is idle and where it is, and which bytes halt it. Everything else is here, once:

* limits are checked before a byte is sent;
* the position is unknown until homed, and again after a stop, a lost line, a reset or a failed move;
* a move is done when the controller says twice in a row that it is idle, at the same place, within tolerance;
  a reply that is late, missing or garbled counts as busy;
* waiting ends when the position has not changed for `stage.timeout_s`, or after twice the time that the kinematics
  need plus that;
* a target is sent again only where the protocol is absolute and each axis rests where it started or at the target, so
  that the command must have been lost; at rest anywhere else, the position is no longer believed.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.serial_line import SerialLine
from edge_scanner.devices.stage import Stage, never
from edge_scanner.errors import DeviceError, EmergencyStopError, LimitsError, PositionUnknownError
from edge_scanner.geometry import Limits, Position

_log = logging.getLogger(__name__)

REPLY_S = 0.3
"""How long a controller may take to answer a question."""

_QUERIES = 4
_FOLLOW_S = 0.25
_RETRY_S = 0.25
_FIRST_POLL_S, _LAST_POLL_S = 0.01, 0.1
_SAME_UM = 0.05
_RESTS, _RESENDS = 5, 2
_CHECKS = 5
_LATE_S = 0.5
"""An answer that has not come so long after it was due is not expected any more."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the controller says of itself.

    Parameters
    ----------
    idle : bool
        It claims that nothing moves.
    at : Position
        In the controller's own coordinates, as micrometres.
    """

    idle: bool
    at: Position


class SerialStage(Stage):
    """A stage behind a serial line; the parts in common.

    Parameters
    ----------
    config : Config
        `[stage]`.
    clock : Clock
    line : SerialLine, optional
        The one to `stage.port` when omitted.
    """

    baud: ClassVar[int]
    """The protocol's own baud rate."""
    absolute: ClassVar[bool] = True
    """Whether `_send` is harmless when it is repeated."""

    def __init__(self, config: Config, clock: Clock, line: SerialLine | None = None) -> None:
        self._stage = config.stage
        self._limits = config.stage.limits
        self._clock = clock
        self._line = line or SerialLine(config.stage.port, config.stage.baud or self.baud, clock)
        self._opened = self._known = False
        self._identity = ""
        self._missed_s = -math.inf
        self._offset = Position(0.0, 0.0, 0.0)
        self._here = Position(0.0, 0.0, 0.0)
        self._last: Position | None = None
        self._target: Position | None = None

    # -- what a protocol adds -------------------------------------------------------------------------------------

    @abstractmethod
    def _identify(self) -> str:
        """Bring a newly opened controller to a known state, at rest, and return what it is; moves nothing."""

    @abstractmethod
    def _home(self) -> None:
        """Find the reference; returns when that is over. Called after anything: start by getting back in step."""

    @abstractmethod
    def _query(self) -> Report | None:
        """Ask for a report; None when no whole and believable one came. Raises DeviceError on alarm or reset."""

    @abstractmethod
    def _send(self, raw: Position) -> None:
        """Send a target in the controller's coordinates; returns without waiting for the end of the move.

        Where only relative moves exist: the difference to `_here`, which was read just before.
        """

    @abstractmethod
    def _halt_packet(self) -> bytes:
        """Return the bytes that halt every axis in whatever state the controller is."""

    def _ping(self) -> None:
        """Make sure that the next report is not older than this call, where the controller reports by itself."""

    def _homed(self, low: Position, high: Position) -> None:
        """Tell the controller its own limits, in its coordinates; called when homing has made them known."""

    # -- the contract ---------------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """Soft limits, micrometres."""
        return self._limits

    def open(self) -> str:
        """Connect and identify; the position is unknown until `home`."""
        self.close()
        self._line.release()
        self._identity = self._connect()
        self._opened = True
        return self._identity

    def close(self) -> None:
        """Halt, if it may be moving, and disconnect."""
        if self._target is not None:
            self._halt()
        self._lose()
        self._opened = False
        self._line.close()

    def home(self, aborted: Callable[[], bool] = never) -> None:
        """Find the reference; reconnect first where the line was lost."""
        self._require_open()
        self._lose()
        self._line.release()
        if aborted():
            self.stop()
            raise EmergencyStopError("The homing was called off before it began.", "Reset and home.")
        with self._failing_closed():
            if not self._line.is_open:
                self._reconnect()
            self._home()
            raw, stage = self._steady().at, self._stage
            home = Position(stage.x_home_mm * 1000, stage.y_home_mm * 1000, stage.z_home_um)
            self._offset = Position(home.x_um - raw.x_um, home.y_um - raw.y_um, home.z_um - raw.z_um)
            limits = self._limits
            self._homed(
                self._to_raw(Position(limits.x_min_um, limits.y_min_um, limits.z_min_um)),
                self._to_raw(Position(limits.x_max_um, limits.y_max_um, limits.z_max_um)),
            )
        self._last, self._known = home, True

    def position(self) -> Position | None:
        """Read the position back; None while it is unknown or cannot be read."""
        if not self._known or self._line.halted:
            return None
        try:
            report = self._read()
        except EmergencyStopError:
            return None
        except DeviceError:
            self._lose()
            raise
        return None if report is None else self._to_stage(report.at)

    def busy(self) -> bool:
        """Tell whether it may be moving."""
        if not self._opened or self._line.halted or not self._line.is_open:
            return True
        try:
            report = self._ask_once()
        except (DeviceError, EmergencyStopError):
            return True
        if report is None or not report.idle:
            return True
        return self._target is not None and not self._is_near(report.at, self._to_raw(self._target))

    def start_move(self, target: Position) -> None:
        """Send an absolute target."""
        self._require_open()
        if self._line.halted:
            raise EmergencyStopError("The stage was stopped.", "Reset and home it.")
        if not self._known:
            raise PositionUnknownError("The stage's position is not known.", "Home it first.")
        if not self._limits.contains(target):
            raise LimitsError(
                f"The target ({target.x_um:g}, {target.y_um:g}, {target.z_um:g}) um is outside the stage's limits.",
                "Move or shrink the region.",
            )
        if self._target is not None:
            self.wait()
        with self._failing_closed():
            self._check_unmoved()
            self._target = target
            self._send(self._to_raw(target))

    def wait(self) -> Position:
        """Block until the move is proved over."""
        self._require_open()
        if self._target is None:
            if self._line.halted:
                raise EmergencyStopError("The stage was stopped.", "Reset and home it.")
            if self._last is None:
                raise PositionUnknownError("The stage's position is not known.", "Home it first.")
            return self._last
        with self._failing_closed():
            self._last = self._to_stage(self._arrive(self._target))
        self._target = None
        return self._last

    def stop(self) -> None:
        """Halt all axes now; waits at most for the packet that is being written."""
        self._line.halt()
        self._known = False
        if self._opened:
            self._halt()

    # -- the rules ------------------------------------------------------------------------------------------------

    def _connect(self) -> str:
        self._line.open()
        try:
            return self._identify()
        except BaseException:
            self._line.close()
            raise

    def _reconnect(self) -> None:
        """Open the line again, waiting up to `stage.timeout_s` for it to be plugged in; it must lead to the same."""
        deadline_s = self._clock.now_s() + self._stage.timeout_s
        while True:
            try:
                identity = self._connect()
                break
            except DeviceError:
                if self._line.halted or self._clock.now_s() > deadline_s:
                    raise
                self._line.sleep(_RETRY_S)
        if identity != self._identity:
            self._line.close()
            raise DeviceError(
                f"The port now leads to {identity!r} instead of {self._identity!r}.", "Check the cables, or restart."
            )

    def _check_unmoved(self) -> None:
        """Refuse to go on when the stage is not where it was left: it was reset, or moved by somebody else.

        The report must be fresh: a controller that is reset after it takes longer to boot than the report is old, so
        that it does not hear the move, which would lead elsewhere from its new zero. An answer that is late might be
        taken for the one to the next question, so it is let pass first.
        """
        self._line.sleep(self._missed_s + _LATE_S - self._clock.now_s())
        answered = False
        for _ in range(_CHECKS):
            self._ping()
            report = self._ask_once()
            if report is None:
                self._line.sleep(_LATE_S)
                continue
            if self._last is not None and self._is_near(report.at, self._to_raw(self._last)):
                self._here = report.at
                return
            answered = True
        if answered:
            raise DeviceError("The stage is not where it was left.", "Check for a reset or a joystick, then home.")
        raise DeviceError("The stage's controller does not answer.", "Check cable and power, then home.")

    def _arrive(self, target: Position) -> Position:
        """Follow a move to its proved end; the position is the controller's."""
        goal, began_s = self._to_raw(target), self._clock.now_s()
        due_s = began_s + self._duration_s(target)
        last_s = due_s + (due_s - began_s) + self._stage.timeout_s
        changed_s, before, rests, sends = began_s, None, 0, 0
        pause_s = _FIRST_POLL_S
        while True:
            now_s = self._clock.now_s()
            if now_s < due_s:
                self._line.sleep(min(due_s - now_s, _FOLLOW_S))
            report = self._ask_once()
            now_s = self._clock.now_s()
            if report is not None:
                same = before is not None and _distance(report.at, before.at) <= _SAME_UM
                at_rest = same and before is not None and report.idle and before.idle
                if at_rest and self._is_near(report.at, goal):
                    return report.at
                changed_s = changed_s if same else now_s
                rests = rests + 1 if at_rest else 0
                before = report
            if report is not None and rests >= _RESTS:
                if not self.absolute or sends >= _RESENDS or not self._is_unsent(report.at, goal):
                    raise DeviceError("The stage rests elsewhere than at its target.", "Check what it met, then home.")
                rests, sends = 0, sends + 1
                self._send(goal)
            if now_s - changed_s > self._stage.timeout_s or now_s > last_s:
                raise DeviceError(
                    "The stage does not answer." if before is None else "The stage did not reach its target.",
                    "Check cable, power and what may block it, then home.",
                )
            if now_s >= due_s:
                self._line.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_POLL_S)

    def _steady(self) -> Report:
        """Return a report at rest that came twice."""
        before = None
        for _ in range(3 * _QUERIES):
            report = self._ask_once()
            if report and before and report.idle and before.idle and _distance(report.at, before.at) <= _SAME_UM:
                return report
            before = report
            self._line.sleep(_FIRST_POLL_S)
        raise DeviceError("The stage does not come to rest after homing.", "Check the controller, then home again.")

    def _read(self) -> Report | None:
        """Ask a few times."""
        return next((report for _ in range(_QUERIES) if (report := self._ask_once())), None)

    def _ask_once(self) -> Report | None:
        """Ask, and remember when no answer came: it may come late."""
        report = self._query()
        if report is None:
            self._missed_s = self._clock.now_s()
        return report

    def _duration_s(self, target: Position) -> float:
        """Return how long the trapezoidal move from the last position takes."""
        last, speed, acceleration = self._last, self._stage.speed_mm_s * 1000, self._stage.acceleration_mm_s2 * 1000
        way = 0.0 if last is None else _distance(target, last)
        if way * acceleration <= speed**2:
            return 2 * math.sqrt(way / acceleration)
        return way / speed + speed / acceleration

    def _is_near(self, raw: Position, goal: Position) -> bool:
        off_um = max(abs(raw.x_um - goal.x_um), abs(raw.y_um - goal.y_um))
        return off_um <= self._stage.tolerance_um and abs(raw.z_um - goal.z_um) <= self._stage.z_tolerance_um

    def _is_unsent(self, raw: Position, goal: Position) -> bool:
        """Tell whether each axis is where the move began or where it ends."""
        start = self._to_raw(self._last) if self._last else goal
        mixed = (
            a if abs(at - a) < abs(at - b) else b
            for at, a, b in zip(_axes(raw), _axes(start), _axes(goal), strict=True)
        )
        return self._is_near(raw, Position(*mixed))

    def _to_raw(self, at: Position) -> Position:
        o = self._offset
        return Position(at.x_um - o.x_um, at.y_um - o.y_um, at.z_um - o.z_um)

    def _to_stage(self, raw: Position) -> Position:
        o = self._offset
        return Position(raw.x_um + o.x_um, raw.y_um + o.y_um, raw.z_um + o.z_um)

    @contextmanager
    def _failing_closed(self) -> Iterator[None]:
        """Whatever goes wrong inside leaves the stage halted as well as can be and its position unknown."""
        try:
            yield
        except EmergencyStopError:
            self._lose()
            raise
        except BaseException:
            self._lose()
            self._halt()
            raise

    def _lose(self) -> None:
        self._known = False
        self._last = self._target = None

    def _halt(self) -> None:
        try:
            self._line.urgent(self._halt_packet())
        except DeviceError as error:
            _log.error("The stage could not be told to halt: %s", error)

    def _require_open(self) -> None:
        if not self._opened:
            raise DeviceError("The stage is not open.", "Open it first.")


def _axes(at: Position) -> tuple[float, float, float]:
    return at.x_um, at.y_um, at.z_um


def _distance(a: Position, b: Position) -> float:
    return max(abs(p - q) for p, q in zip(_axes(a), _axes(b), strict=True))
