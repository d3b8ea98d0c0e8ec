"""Squid / Cephla firmware: 8-byte commands in, a 24-byte report every 10 ms."""

from __future__ import annotations

import math
from collections.abc import Callable

from hil_sim.firmware.base import Firmware
from hil_sim.mechanics import Mechanics

PERIOD_S = 0.01
VERSION = 0x14
STEPS_UM = (0.79375, 0.79375, 0.09375)
DONE, WORKING, BAD_SUM, INVALID, FAILED = range(5)
PORTS = (11, 12, 13, 14, 15)


def check_sum(data: bytes) -> int:
    """CRC-8 by long division of the message, polynomial x^8 + x^2 + x + 1."""
    rest = int.from_bytes(data, "big") << 8
    for bit in range(rest.bit_length() - 1, 7, -1):
        if rest >> bit & 1:
            rest ^= 0x107 << (bit - 8)
    return rest


class Squid(Firmware):
    """The controller. Homing runs to the switch and calls it zero; limits are in steps."""

    def __init__(self, mechanics: Mechanics, send: Callable[[bytes], None]) -> None:
        super().__init__(mechanics, send)
        self._zero_um = list(mechanics.shaft(0.0))
        self._buffer = bytearray()
        self._id, self._status = 0, DONE
        self._next_s = 0.0
        self._limits: dict[int, int] = {}
        self._homing: list[int] = []
        self._hopeless = False
        self._forget_light()

    def boot(self, now_s: float) -> None:
        """Forget everything."""
        self.deafen(now_s)
        self._buffer.clear()
        self._id, self._status = 0, DONE
        self._restart(now_s)

    def _restart(self, now_s: float) -> None:
        self.mechanics.freeze(now_s)
        self._zero_um = list(self.mechanics.shaft(now_s))
        self._limits, self._homing, self._hopeless = {}, [], False
        self._forget_light()

    def _forget_light(self) -> None:
        self.lamp, self._source, self._levels = 0.0, 0, dict.fromkeys(PORTS, 1.0)
        self._colour, self._shines = 0.0, False
        self._watchdog_s, self._heard_s = math.inf, 0.0

    def due_s(self) -> float:
        """Return when the next report is due."""
        return self._next_s

    def tick(self, now_s: float) -> None:
        """End what has ended, and report every 10 ms."""
        if now_s < self._next_s:
            return
        self._next_s = max(self._next_s + PERIOD_S, now_s)
        if now_s - self._heard_s >= self._watchdog_s:
            self._watchdog_s = math.inf
            self._shine(False)
        if self._status == WORKING and not self.is_busy(now_s) and not self._hopeless:
            if not self.mechanics.moving(now_s):
                for n in self._homing:
                    self._zero_um[n] = self.mechanics.shaft(now_s)[n]
                self._homing = []
            self._status = DONE
        if not self.is_deaf(now_s):
            self._send(self.report(now_s))

    def report(self, now_s: float) -> bytes:
        """Return what it says of itself."""
        body = bytes((self._id, self._status))
        for n in range(3):
            body += self._steps(n, now_s).to_bytes(4, "big", signed=True)
        body = body.ljust(22, b"\0") + bytes((VERSION,))
        return body + bytes((check_sum(body),))

    def receive(self, data: bytes, now_s: float) -> None:
        """Gather eight bytes at a time; after a wrong sum everything that waits is thrown away."""
        if self.is_deaf(now_s):
            return
        self._buffer += data
        while len(self._buffer) >= 8:
            command, self._buffer = bytes(self._buffer[:8]), self._buffer[8:]
            if check_sum(command[:7]) != command[7]:
                self._id, self._status = command[0], BAD_SUM
                self._buffer.clear()
                return
            self._id, self._status, self._heard_s = command[0], DONE, now_s
            self._obey(command[1], command[2:7], now_s)
            if self.mechanics.moving(now_s) or self._homing or self._hopeless or self.faults.stuck_busy:
                self._status = WORKING

    def hit_limit(self, now_s: float) -> None:
        """Fault: the axes stop on a switch, and the command never ends."""
        super().hit_limit(now_s)
        self._hopeless = True

    def _obey(self, opcode: int, body: bytes, now_s: float) -> None:
        value = int.from_bytes(body[:4], "big", signed=True)
        if opcode in (0, 1, 2):
            self._move_by(opcode, value, now_s)
        elif opcode in (6, 7, 8):
            self._move_to(opcode - 6, value, now_s)
        elif opcode == 5:
            self._home(body, now_s)
        elif opcode == 9:
            self._limits[body[0]] = int.from_bytes(body[1:5], "big", signed=True)
        elif opcode == 255:
            self._restart(now_s)
        else:
            self._light(opcode, body)

    def _light(self, opcode: int, body: bytes) -> None:
        if opcode == 12:
            self._source = body[0]
            self._levels[body[0]] = int.from_bytes(body[1:3], "big") / 0xFFFF
        elif opcode == 13:
            self._source, self._colour = body[0], max(body[1:4]) / 255
        elif opcode == 40:
            self._watchdog_s = int.from_bytes(body[:4], "big") / 1000
        if opcode in (10, 11, 12, 13, 39):
            self._shine({10: True, 11: False, 39: False}.get(opcode, self._shines))

    def _shine(self, on: bool) -> None:
        self._shines = on
        self.lamp = on * (self._levels[self._source] if self._source in PORTS else self._colour)

    def _move_by(self, n: int, steps: int, now_s: float) -> None:
        if steps == 0:
            self.halts += 1
            self._hopeless = False
        target = self._steps(n, now_s) + steps
        target = min(target, self._limits.get(2 * n, target))
        target = max(target, self._limits.get(2 * n + 1, target)) if steps else target
        self.mechanics.axes[n].go(self._zero_um[n] + target * STEPS_UM[n], now_s)

    def _move_to(self, n: int, steps: int, now_s: float) -> None:
        low, high = self._limits.get(2 * n + 1, steps), self._limits.get(2 * n, steps)
        if not low <= steps <= high:
            self.refused += 1
            self._hopeless = True
        self.mechanics.axes[n].go(self._zero_um[n] + min(max(steps, low), high) * STEPS_UM[n], now_s)

    def _home(self, body: bytes, now_s: float) -> None:
        axes = (0, 1) if body[0] == 4 else (body[0],)
        for n, way in zip(axes, body[1:], strict=False):
            if n > 2 or way > 2:
                self._status = INVALID
            elif way == 2:
                self._zero_um[n] = self.mechanics.shaft(now_s)[n]
            else:
                axis = self.mechanics.axes[n]
                end = axis.low if way == 1 else axis.high
                axis.go(axis.shaft(now_s) + end - axis.carriage(now_s), now_s)
                self._homing.append(n)

    def _steps(self, n: int, now_s: float) -> int:
        return round((self.mechanics.axes[n].shaft(now_s) - self._zero_um[n]) / STEPS_UM[n])


CONTROLLER = Squid
