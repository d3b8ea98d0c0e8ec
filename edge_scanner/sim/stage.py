"""The simulated stage: trapezoidal moves on the clock, backlash, a wrong unit and limited repeatability."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_scanner.config import Config
from edge_scanner.devices.clock import Clock, RealClock
from edge_scanner.devices.stage import Stage, never
from edge_scanner.errors import DeviceError, EmergencyStopError, LimitsError, PositionUnknownError
from edge_scanner.geometry import Limits, Position

HOME_EXTRA_S = 0.5
_POSITION_TAG = 0x57A6E
_NOWHERE = Position(0.0, 0.0, 0.0)


def profile(distance_um: float, elapsed_s: float, speed_um_s: float, acceleration_um_s2: float) -> float:
    """Return how far a trapezoidal move of `distance_um` (not negative) has come after `elapsed_s`, micrometres."""
    total = duration_s(distance_um, speed_um_s, acceleration_um_s2)
    if elapsed_s >= total:
        return distance_um
    ramp = min(speed_um_s / acceleration_um_s2, total / 2)
    if elapsed_s <= ramp:
        return acceleration_um_s2 * elapsed_s**2 / 2
    if elapsed_s >= total - ramp:
        return distance_um - acceleration_um_s2 * (total - elapsed_s) ** 2 / 2
    return acceleration_um_s2 * ramp * (elapsed_s - ramp / 2)


def duration_s(distance_um: float, speed_um_s: float, acceleration_um_s2: float) -> float:
    """Return how long a trapezoidal move takes, seconds."""
    if distance_um * acceleration_um_s2 <= speed_um_s**2:
        return 2 * math.sqrt(distance_um / acceleration_um_s2)
    return distance_um / speed_um_s + speed_um_s / acceleration_um_s2


@dataclass(frozen=True, slots=True)
class _Move:
    """A move under way or over; the true position is what the screws carry plus the error."""

    began_s: float
    start: Position
    target: Position
    carried_start: Position
    carried_target: Position
    error_start: Position
    error_target: Position


class SimStage(Stage):
    """A stage that knows where it really is.

    A commanded (x, y) becomes a true one by, in this order: the unit error about stage (0, 0); backlash, as play
    that a move in the positive direction takes up (after a long move in the negative one the stage lags by the whole
    of it); the repeatability error, a pure function of seed and target. z is exact. The read-back is the commanded
    position.

    One thread drives it; `stop` takes no lock and wakes `wait` and `home` at once, on the real clock too.

    Parameters
    ----------
    config : Config
        `[stage]` for limits and kinematics, `[sim]` for the errors.
    clock : Clock
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._sim = config.sim
        self._limits = config.stage.limits
        self._speed = config.stage.speed_mm_s * 1000
        self._acceleration = config.stage.acceleration_mm_s2 * 1000
        self._clock = clock
        self._halted = threading.Event()
        self._halted_s = math.inf
        self._opened = self._known = self._homing = False
        self._slipped = _NOWHERE
        limits = self._limits
        somewhere = Position(min(5000.0, limits.x_max_um), min(3000.0, limits.y_max_um), min(50.0, limits.z_max_um))
        self._move = _Move(-math.inf, somewhere, somewhere, somewhere, somewhere, _NOWHERE, _NOWHERE)

    @property
    def limits(self) -> Limits:
        """Soft limits, micrometres."""
        return self._limits

    def open(self) -> str:
        """Connect; the position is unknown until `home`."""
        self._opened = True
        return f"simulated stage, seed {self._sim.seed}"

    def close(self) -> None:
        """Halt and disconnect."""
        if self._opened:
            self.stop()
        self._opened = False

    def home(self, aborted: Callable[[], bool] = never) -> None:
        """Travel to the reference, stage (0, 0, 0) or the nearest corner of the limits."""
        self._require_open()
        carried, error = self._carried(), self._error()
        self._known = False
        self._halted_s = math.inf
        self._halted.clear()
        if aborted():
            self._halted.set()
            raise EmergencyStopError("The homing was called off before it began.", "Reset and home.")
        limits = self._limits
        reference = Position(
            min(max(0.0, limits.x_min_um), limits.x_max_um),
            min(max(0.0, limits.y_min_um), limits.y_max_um),
            min(max(0.0, limits.z_min_um), limits.z_max_um),
        )
        landed, off = self._landed(reference, reference), self._error_at(reference)
        self._move = _Move(self._clock.now_s(), carried, reference, carried, landed, error, off)
        self._homing = True
        self._sleep(self._left_s() + HOME_EXTRA_S)
        self._homing = False
        self._known = True
        self._slipped = _NOWHERE
        if self._halted.is_set():
            self._known = False
            raise EmergencyStopError("The stage was stopped while homing.", "Reset and home.")

    def position(self) -> Position | None:
        """Return the commanded position, between start and target during a move; None while unknown."""
        if not self._known or self._halted.is_set():
            return None
        return self._between(self._move.start, self._move.target)

    def true_position(self) -> Position:
        """Return where the centre of the field of view really is, known or not."""
        carried, error = self._carried(), self._error()
        off = self._slipped
        return Position(carried.x_um + error.x_um + off.x_um, carried.y_um + error.y_um + off.y_um, carried.z_um)

    def busy(self) -> bool:
        """Tell whether a move or homing is under way; True while closed."""
        return not self._opened or (not self._halted.is_set() and (self._homing or self._left_s() > 0))

    def start_move(self, target: Position) -> None:
        """Start a move from wherever the stage is now."""
        self._require_open()
        if self._halted.is_set():
            raise EmergencyStopError("The stage was stopped.", "Reset and home it.")
        here = self.position()
        if here is None:
            raise PositionUnknownError("The stage has not been homed.", "Home it first.")
        if not self._limits.contains(target):
            raise LimitsError(
                f"The target ({target.x_um:g}, {target.y_um:g}, {target.z_um:g}) um is outside the stage's limits.",
                "Move or shrink the region.",
            )
        carried, error = self._carried(), self._error()
        landed, off = self._landed(target, carried), self._error_at(target)
        self._move = _Move(self._clock.now_s(), here, target, carried, landed, error, off)

    def wait(self) -> Position:
        """Block until the move is over and return the read-back position."""
        self._require_open()
        self._sleep(self._left_s())
        here = self.position()
        if self._halted.is_set():
            raise EmergencyStopError("The stage was stopped during the move.", "Reset and home it.")
        if here is None:
            raise PositionUnknownError("The stage has not been homed.", "Home it first.")
        return here

    def stop(self) -> None:
        """Halt where it is; the position is unknown afterwards."""
        if not self._halted.is_set():
            self._halted_s = self._clock.now_s()
            self._halted.set()

    def slip(self, x_um: float, y_um: float) -> None:
        """Lose steps: from now on the load is off by that much, and nobody knows; homing mends it."""
        self._slipped = Position(self._slipped.x_um + x_um, self._slipped.y_um + y_um, 0.0)

    def _require_open(self) -> None:
        if not self._opened:
            raise DeviceError("The simulated stage is not open.", "Open it first.")

    def _sleep(self, seconds: float) -> None:
        """Let time pass; on the real clock `stop` ends it early."""
        if isinstance(self._clock, RealClock):
            self._halted.wait(max(0.0, seconds))
        else:
            self._clock.sleep_s(seconds)

    def _left_s(self) -> float:
        move = self._move
        pairs = zip(_axes(move.start), _axes(move.target), strict=True)
        longest = max(duration_s(abs(b - a), self._speed, self._acceleration) for a, b in pairs)
        return max(0.0, move.began_s + longest - self._clock.now_s())

    def _between(self, start: Position, target: Position) -> Position:
        """Return a place on the way; all coordinates go in step with the commanded ones."""
        move = self._move
        elapsed = min(self._clock.now_s(), self._halted_s) - move.began_s
        there = []
        for a, b, start_um, target_um in zip(*map(_axes, (start, target, move.start, move.target)), strict=True):
            distance = abs(target_um - start_um)
            gone = profile(distance, elapsed, self._speed, self._acceleration)
            there.append(b if gone >= distance else a + (b - a) * gone / distance)
        return Position(*there)

    def _carried(self) -> Position:
        return self._between(self._move.carried_start, self._move.carried_target)

    def _error(self) -> Position:
        return self._between(self._move.error_start, self._move.error_target)

    def _landed(self, target: Position, carried: Position) -> Position:
        """Return where the screws leave the carriage: play lets it stay behind by up to the backlash."""
        unit, play = 1 + self._sim.scale_error, self._sim.backlash_um
        x, y = target.x_um * unit, target.y_um * unit
        return Position(min(max(carried.x_um, x), x + play), min(max(carried.y_um, y), y + play), target.z_um)

    def _error_at(self, target: Position) -> Position:
        """Return the repeatability error of a target: Gaussian, clipped at three sigma, fixed by the seed."""
        if self._sim.stage_error_um == 0:
            return _NOWHERE
        rng = np.random.default_rng([_POSITION_TAG, self._sim.seed, *nanometres(target.x_um, target.y_um)])
        x, y = np.clip(rng.standard_normal(2), -3, 3) * self._sim.stage_error_um
        return Position(float(x), float(y), 0.0)


def nanometres(*lengths_um: float) -> tuple[int, ...]:
    """Return lengths as whole nanometres, not negative, so that they can seed a generator."""
    return tuple(round(length * 1000) & 0xFFFF_FFFF_FFFF for length in lengths_um)


def _axes(position: Position) -> tuple[float, float, float]:
    return position.x_um, position.y_um, position.z_um
