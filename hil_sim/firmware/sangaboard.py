"""Sangaboard firmware v1: words ended by LF, replies ended by CRLF, relative steps."""

from __future__ import annotations

from collections.abc import Callable

from hil_sim.firmware.base import Firmware
from hil_sim.mechanics import Mechanics

STEPS_UM = (0.07, 0.07, 0.05)


class Sangaboard(Firmware):
    """The board; it counts steps from where it was switched on."""

    def __init__(self, mechanics: Mechanics, send: Callable[[bytes], None]) -> None:
        super().__init__(mechanics, send)
        self._zero_um = list(mechanics.shaft(0.0))
        self._line = bytearray()
        self._blocking = True
        self._owes_done = False
        self.moves = 0

    def boot(self, now_s: float) -> None:
        """Forget the count."""
        self.deafen(now_s)
        self.mechanics.freeze(now_s)
        self._zero_um = list(self.mechanics.shaft(now_s))
        self._line.clear()
        self._blocking, self._owes_done = True, False

    def due_s(self) -> float:
        """Return when a blocking move ends."""
        return self.mechanics.ends_s() if self._owes_done else float("inf")

    def tick(self, now_s: float) -> None:
        """Answer a blocking move that is over."""
        if self._owes_done and not self.mechanics.moving(now_s):
            self._owes_done = False
            self._say("done.")

    def receive(self, data: bytes, now_s: float) -> None:
        """Gather a command."""
        if self.is_deaf(now_s):
            return
        for byte in data:
            if byte == 0x0A:
                words, self._line = self._line.decode("ascii", "replace").split(), bytearray()
                if words and not (self._owes_done and words[0] != "stop"):
                    self._obey(words[0], words[1:], now_s)
            else:
                self._line.append(byte)

    def _obey(self, verb: str, words: list[str], now_s: float) -> None:
        match verb, words:
            case "version", []:
                self._say("Sangaboard Firmware v1.0.1")
            case "blocking_moves", ["true" | "false" as word]:
                self._blocking = word == "true"
                self._say("done.")
            case "mr", [x, y, z]:
                self._move((int(x), int(y), int(z)), now_s)
            case "moving?", []:
                self._say("true" if self.is_busy(now_s) else "false")
            case "stop", []:
                self._stop(now_s)
            case "p?", []:
                self._say(" ".join(str(self._steps(n, now_s)) for n in range(3)))
            case "zero", []:
                self._zero_um = list(self.mechanics.shaft(now_s))
                self._say("position reset to 0 0 0")
            case _:
                self._say("Type 'help' for a list of commands.")

    def _move(self, steps: tuple[int, int, int], now_s: float) -> None:
        self.moves += 1
        self.mechanics.go(
            [s + n * um for s, n, um in zip(self.mechanics.shaft(now_s), steps, STEPS_UM, strict=True)], now_s
        )
        self._owes_done = self._blocking
        if not self._blocking:
            self._say("done.")

    def _stop(self, now_s: float) -> None:
        self.halts += 1
        self.mechanics.brake(now_s)
        self._owes_done = False
        self._say("Move aborted")

    def _steps(self, n: int, now_s: float) -> int:
        return round((self.mechanics.axes[n].shaft(now_s) - self._zero_um[n]) / STEPS_UM[n])

    def _say(self, text: str) -> None:
        self._send(text.encode() + b"\r\n")


CONTROLLER = Sangaboard
