"""Prior ProScan: comma-separated commands, CR both ways, `R` when a move has ended."""

from __future__ import annotations

from collections.abc import Callable

from hil_sim.firmware.base import Firmware
from hil_sim.mechanics import Mechanics

STEPS_UM = (1.0, 1.0, 0.1)
QUEUE = 100


class Prior(Firmware):
    """The controller in `COMP 0`; homing runs to the low switches and calls them zero."""

    def __init__(self, mechanics: Mechanics, send: Callable[[bytes], None]) -> None:
        super().__init__(mechanics, send)
        self._zero_um = list(mechanics.shaft(0.0))
        self._line = bytearray()
        self._owed = 0
        self._homing = False

    def boot(self, now_s: float) -> None:
        """Forget the count."""
        self.deafen(now_s)
        self.mechanics.freeze(now_s)
        self._zero_um = list(self.mechanics.shaft(now_s))
        self._line.clear()
        self._owed, self._homing = 0, False

    def due_s(self) -> float:
        """Return when the moves under way end."""
        return self.mechanics.ends_s() if self._owed else float("inf")

    def tick(self, now_s: float) -> None:
        """Answer the moves that are over."""
        if self._owed and not self.mechanics.moving(now_s):
            if self._homing:
                self._zero_um, self._homing = list(self.mechanics.shaft(now_s)), False
            for _ in range(self._owed):
                self._send(b"R\r")
            self._owed = 0

    def receive(self, data: bytes, now_s: float) -> None:
        """Gather a command."""
        if self.is_deaf(now_s):
            return
        for byte in data:
            if byte == 0x0D:
                line, self._line = self._line.decode("ascii", "replace"), bytearray()
                self._obey(line.upper().replace(" ", ",").split(","), now_s)
            else:
                self._line.append(byte)

    def _obey(self, words: list[str], now_s: float) -> None:
        try:
            verb, numbers = words[0], [int(word) for word in words[1:]]
        except ValueError:
            self._send(b"E,4\r")
            return
        shaft = self.mechanics.shaft(now_s)
        match verb, numbers:
            case "COMP", [0]:
                self._send(b"0\r")
            case "G", [x, y]:
                self._go([self._zero_um[0] + x * STEPS_UM[0], self._zero_um[1] + y * STEPS_UM[1], None], now_s)
            case "GR", [x, y]:
                self._go([shaft[0] + x * STEPS_UM[0], shaft[1] + y * STEPS_UM[1], None], now_s)
            case "U" | "D", [n]:
                self._go([None, None, shaft[2] + (n if verb == "U" else -n) * STEPS_UM[2]], now_s)
            case "P", []:
                at = (round((s - z) / um) for s, z, um in zip(shaft, self._zero_um, STEPS_UM, strict=True))
                self._send(",".join(map(str, at)).encode() + b"\r")
            case "$", []:
                turning = (axis.moving(now_s) for axis in self.mechanics.axes)
                mask = sum(1 << n for n, on in enumerate(turning) if on) if self.is_busy(now_s) else 0
                self._send(f"{mask or int(self.faults.stuck_busy)}\r".encode())
            case "K" | "I", []:
                self._halt(verb == "K", now_s)
            case "PS", [x, y]:
                self._zero_um[:2] = shaft[0] - x * STEPS_UM[0], shaft[1] - y * STEPS_UM[1]
                self._send(b"0\r")
            case "SIS", []:
                self._go([a.shaft(now_s) + a.low - a.carriage(now_s) for a in self.mechanics.axes], now_s)
                self._homing = True
            case _:
                self._send(b"E,5\r")

    def _go(self, targets: list[float | None], now_s: float) -> None:
        if self._owed >= QUEUE:
            self._send(b"E,18\r")
            return
        self._owed += 1
        self.mechanics.go(targets, now_s)

    def _halt(self, at_once: bool, now_s: float) -> None:
        self.halts += 1
        if at_once:
            self.mechanics.freeze(now_s)
        else:
            self.mechanics.brake(now_s)
        self._owed, self._homing = 0, False
        self._send(b"R\r")


CONTROLLER = Prior
