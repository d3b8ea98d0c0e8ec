"""ASI MS-2000: ASCII commands ended by CR, replies ended by CRLF, unit a tenth of a micrometre."""

from __future__ import annotations

import re
from collections.abc import Callable

from hil_sim.firmware.base import Firmware
from hil_sim.mechanics import Mechanics

UNIT_UM = 0.1
AXES = "XYZ"
_PAIR = re.compile(r"([A-Z])=(-?\d+(?:\.\d*)?)")


class Asi(Firmware):
    """The controller; homing runs to the low switches and leaves the count as it is."""

    def __init__(self, mechanics: Mechanics, send: Callable[[bytes], None]) -> None:
        super().__init__(mechanics, send)
        self._zero_um = list(mechanics.shaft(0.0))
        self._line = bytearray()
        self._low_mm = [-1000.0] * 3
        self._high_mm = [1000.0] * 3

    def boot(self, now_s: float) -> None:
        """Forget the count; here is zero."""
        self.deafen(now_s)
        self.mechanics.freeze(now_s)
        self._zero_um = list(self.mechanics.shaft(now_s))
        self._line.clear()
        self._low_mm, self._high_mm = [-1000.0] * 3, [1000.0] * 3

    def receive(self, data: bytes, now_s: float) -> None:
        """Gather a command."""
        if self.is_deaf(now_s):
            return
        for byte in data:
            if byte == 0x0D:
                line, self._line = self._line.decode("ascii", "replace"), bytearray()
                self._send(self._obey(line.upper().strip(), now_s).encode() + b"\r\n")
            else:
                self._line.append(byte)

    def _obey(self, line: str, now_s: float) -> str:
        name, _, rest = line.partition(" ")
        pairs = {axis: float(value) for axis, value in _PAIR.findall(rest)}
        plain = [axis for axis in rest.replace("?", "").split() if "=" not in axis]
        if any(axis not in AXES for axis in (*pairs, *plain)) and name not in ("VB", "V"):
            return ":N-2"
        match name:
            case "/":
                return "B" if self.is_busy(now_s) else "N"
            case "RS":
                return ":A B" if self.is_busy(now_s) else ":A N"
            case "\\" | "HALT":
                return self._halt(now_s)
            case "W":
                return ":A " + " ".join(f"{self._count(AXES.index(axis), now_s)}" for axis in plain)
            case "M" | "R":
                return self._move(pairs, relative=name == "R", now_s=now_s)
            case "!":
                return self._home(plain, now_s)
            case "H":
                for axis, value in pairs.items():
                    n = AXES.index(axis)
                    self._zero_um[n] = self.mechanics.shaft(now_s)[n] - value * UNIT_UM
                return ":A"
            case "SL" | "SU":
                for axis, value in pairs.items():
                    (self._low_mm if name == "SL" else self._high_mm)[AXES.index(axis)] = value
                return ":A"
            case "S" | "AC" | "B":
                return ":A" if pairs else ":N-3"
            case "V":
                return ":A Version: USB-9.2n"
            case _:
                return ":N-1"

    def _move(self, pairs: dict[str, float], *, relative: bool, now_s: float) -> str:
        if not pairs:
            return ":N-3"
        targets: list[float | None] = [None] * 3
        for axis, value in pairs.items():
            n = AXES.index(axis)
            count = value + (self._count(n, now_s) if relative else 0)
            if not self._low_mm[n] * 1e4 - 0.5 <= count <= self._high_mm[n] * 1e4 + 0.5:
                self.refused += 1
                return ":N-4"
            targets[n] = self._zero_um[n] + count * UNIT_UM
        self.mechanics.go(targets, now_s)
        return ":A"

    def _home(self, axes: list[str], now_s: float) -> str:
        for name in axes:
            axis = self.mechanics.axes[AXES.index(name)]
            axis.go(axis.shaft(now_s) + axis.low - axis.carriage(now_s), now_s)
        return ":A"

    def _halt(self, now_s: float) -> str:
        self.halts += 1
        if not self.mechanics.moving(now_s):
            return ":A"
        self.mechanics.brake(now_s)
        return ":N-21"

    def _count(self, n: int, now_s: float) -> int:
        return round((self.mechanics.axes[n].shaft(now_s) - self._zero_um[n]) / UNIT_UM)


CONTROLLER = Asi
