"""Screws and carriages: trapezoidal motion on a given clock, hard ends, play, and steps that get lost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stretch:
    """Motion with constant acceleration from a moment on."""

    began_s: float
    lasts_s: float
    at: float
    speed: float
    acceleration: float

    def where(self, now_s: float) -> float:
        """Return the place at a moment, held at the end of the stretch."""
        t = min(max(0.0, now_s - self.began_s), self.lasts_s)
        return self.at + self.speed * t + self.acceleration * t * t / 2

    def how_fast(self, now_s: float) -> float:
        """Return the speed at a moment within the stretch."""
        return self.speed + self.acceleration * min(max(0.0, now_s - self.began_s), self.lasts_s)

    @property
    def ends_s(self) -> float:
        """When it is over."""
        return self.began_s + self.lasts_s


class Axis:
    """One motor, its screw and its carriage, in micrometres of the slide.

    `shaft` is what the motor carries, `carriage` where the load really is: behind by play, off by lost steps. The
    carriage stops at the ends of its travel, where the switches are; the shaft that goes on loses steps.

    Parameters
    ----------
    speed, acceleration : float
        um/s and um/s2.
    low, high : float
        Ends of the travel.
    start : float
        Where it stands when power comes on.
    play : float
        Backlash.
    """

    def __init__(
        self, speed: float, acceleration: float, low: float, high: float, start: float, play: float = 0.0
    ) -> None:
        self.speed, self.acceleration = speed, acceleration
        self.low, self.high = low, high
        self._stretches: list[Stretch] = [Stretch(-math.inf, 0.0, start, 0.0, 0.0)]
        self._play = play
        self._slip = 0.0
        self._carried = start

    def shaft(self, now_s: float) -> float:
        """Return where the motor believes to have brought the load."""
        return self._stretch(now_s).where(now_s)

    def carriage(self, now_s: float) -> float:
        """Return where the load is."""
        wanted = self.shaft(now_s) + self._slip
        carried = min(max(self._carried, wanted - self._play), wanted)
        if not self.low <= carried <= self.high:
            end = min(max(carried, self.low), self.high)
            self._slip += end - carried
            carried = end
        self._carried = carried
        return carried

    def ends_s(self) -> float:
        """Return when the motion under way is over."""
        return self._stretches[-1].ends_s

    def moving(self, now_s: float) -> bool:
        """Whether the motor turns."""
        return now_s < self.ends_s()

    def go(self, target: float, now_s: float, pace: float = 1.0) -> None:
        """Travel to a place, braking first where something is under way; `pace` scales the speed."""
        begin_s, start = self.brake(now_s)
        way, sign = abs(target - start), math.copysign(1.0, target - start)
        if way < 1e-9:
            return
        a = self.acceleration
        top = min(self.speed * pace, math.sqrt(way * a))
        ramp_s, cruise_s = top / a, (way - top * top / a) / top
        ramp = top * ramp_s / 2
        self._stretches += [
            Stretch(begin_s, ramp_s, start, 0.0, sign * a),
            Stretch(begin_s + ramp_s, cruise_s, start + sign * ramp, sign * top, 0.0),
            Stretch(begin_s + ramp_s + cruise_s, ramp_s, target - sign * ramp, sign * top, -sign * a),
        ]

    def brake(self, now_s: float) -> tuple[float, float]:
        """Come to rest as the acceleration allows; return when and where that is."""
        self.carriage(now_s)
        stretch = self._stretch(now_s)
        at, speed = stretch.where(now_s), stretch.how_fast(now_s) if self.moving(now_s) else 0.0
        lasts_s = abs(speed) / self.acceleration
        self._stretches = [Stretch(now_s, lasts_s, at, speed, -math.copysign(self.acceleration, speed))]
        return now_s + lasts_s, self._stretches[0].where(now_s + lasts_s)

    def freeze(self, now_s: float) -> None:
        """Stop dead, as when the driver loses its pulses."""
        self.carriage(now_s)
        self._stretches = [Stretch(now_s, 0.0, self.shaft(now_s), 0.0, 0.0)]

    def slip(self, length: float) -> None:
        """Lose steps: the load is off by that much, and nobody knows."""
        self._slip += length
        self._carried += length

    def _stretch(self, now_s: float) -> Stretch:
        begun = [stretch for stretch in self._stretches if stretch.began_s <= now_s]
        return begun[-1] if begun else self._stretches[0]


class Mechanics:
    """Three axes; x, y, z in this order."""

    def __init__(self, axes: Iterable[Axis]) -> None:
        self.axes = tuple(axes)

    def shaft(self, now_s: float) -> tuple[float, ...]:
        """Return where the motors are."""
        return tuple(axis.shaft(now_s) for axis in self.axes)

    def truth(self, now_s: float) -> tuple[float, ...]:
        """Return where the load really is: what the camera sees."""
        return tuple(axis.carriage(now_s) for axis in self.axes)

    def moving(self, now_s: float) -> bool:
        """Whether any motor turns."""
        return any(axis.moving(now_s) for axis in self.axes)

    def ends_s(self) -> float:
        """Return when all is at rest."""
        return max(axis.ends_s() for axis in self.axes)

    def go(self, targets: Iterable[float | None], now_s: float) -> None:
        """Send some axes somewhere."""
        for axis, target in zip(self.axes, targets, strict=True):
            if target is not None:
                axis.go(target, now_s)

    def brake(self, now_s: float) -> None:
        """Bring all axes to rest."""
        for axis in self.axes:
            axis.brake(now_s)

    def freeze(self, now_s: float) -> None:
        """Stop all axes dead."""
        for axis in self.axes:
            axis.freeze(now_s)
