"""GRBL 1.1h: line protocol, real-time bytes, jogging, homing, alarms, reports, spindle output."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from hil_sim.firmware.base import Firmware
from hil_sim.mechanics import Mechanics

BOOT_S = 1.4
PULL_OFF_UM = 1000.0
PLANNER = 15
RX_BYTES = 127
TOP_SPEED = 1000
_WORD = re.compile(r"([XYZF])(-?\d*\.?\d+)")
_SPINDLE = re.compile(r"M5|M3S(\d+)")


class Grbl(Firmware):
    """The controller; its z millimetre is `z_scale` times smaller than a real one.

    Homing seeks the low end of each axis and pulls off a millimetre (a tenth of the travel where that is short).
    """

    def __init__(
        self, mechanics: Mechanics, send: Callable[[bytes], None], z_scale: float = 10.0, laser_mode: float = 0
    ) -> None:
        super().__init__(mechanics, send)
        self._laser_mode = int(laser_mode)
        self._unit_um = (1000.0, 1000.0, 1000.0 / z_scale)
        self._zero_um = list(mechanics.shaft(0.0))
        self._line = bytearray()
        self.lamp = 0.0
        self._queue: deque[tuple[float, ...]] = deque()
        self._boots_s: float | None = None
        self._homes_s: float | None = None
        self._pulled_off = False
        self._state = "Alarm"
        self._critical = False
        self._reports = 0

    def boot(self, now_s: float) -> None:
        """Be silent for 1.4 s, then greet."""
        self.mechanics.freeze(now_s)
        self._forget()
        self._boots_s = now_s + BOOT_S

    def due_s(self) -> float:
        """Return the next end: of booting, of homing, of a motion with another one waiting."""
        due = [t for t in (self._boots_s, self._homes_s) if t is not None]
        if self._queue or self._state in ("Jog", "Hold"):
            due.append(self.mechanics.ends_s())
        return min(due, default=float("inf"))

    def tick(self, now_s: float) -> None:
        """Greet, finish homing, start the next queued jog."""
        if self._boots_s is not None and now_s >= self._boots_s:
            self._boots_s = None
            self._greet()
        if self._homes_s is not None and now_s >= self._homes_s:
            self._go_on_homing(now_s)
        if self._state in ("Jog", "Hold") and not self.mechanics.moving(now_s):
            if self._state == "Jog" and self._queue:
                self.mechanics.go(self._queue.popleft(), now_s)
            else:
                self._queue.clear()
                self._state = "Idle"

    def receive(self, data: bytes, now_s: float) -> None:
        """Pick out real-time bytes, gather lines."""
        for byte in data:
            self.tick(now_s)
            if self._boots_s is not None:
                continue
            if byte == 0x18:
                self._soft_reset(now_s)
            elif byte == 0x85:
                self._cancel_jog(now_s)
            elif byte == ord("?"):
                self._report(now_s)
            elif byte in b"!~" or byte >= 0x80:
                continue
            elif byte in b"\r\n":
                line, self._line = self._line.decode("ascii", "replace"), bytearray()
                self._execute(line.replace(" ", "").upper(), now_s)
            elif len(self._line) < RX_BYTES:
                self._line.append(byte)

    def hit_limit(self, now_s: float) -> None:
        """Fault: hard limit alarm; critical, only a reset is heard."""
        super().hit_limit(now_s)
        self._queue.clear()
        self._say("ALARM:1", "[MSG:Reset to continue]")
        self._state, self._critical = "Alarm", True

    def _forget(self) -> None:
        self._queue.clear()
        self._line.clear()
        self._homes_s, self._pulled_off = None, False
        self.lamp = 0.0
        self._state, self._critical, self._reports = "Alarm", False, 0

    def _greet(self) -> None:
        self._say("", "Grbl 1.1h ['$' for help]", "[MSG:'$H'|'$X' to unlock]")

    def _soft_reset(self, now_s: float) -> None:
        if self.mechanics.moving(now_s):
            self.mechanics.freeze(now_s)
            self._say("ALARM:3")
        self._forget()
        self._greet()

    def _cancel_jog(self, now_s: float) -> None:
        self.halts += 1
        if self._state == "Jog":
            self.mechanics.brake(now_s)
            self._queue.clear()
            self._state = "Hold"

    def _execute(self, line: str, now_s: float) -> None:
        if self._critical or self._homes_s is not None:
            return
        if line.startswith("$J="):
            self._say(self._jog(line[3:], now_s))
        elif line == "$H":
            self._begin_homing(now_s)
        elif line == "$X":
            if self._state == "Alarm":
                self._state = "Idle"
                self._say("[MSG:Caution: Unlocked]")
            self._say("ok")
        elif line == "$I":
            self._say("[VER:1.1h.20190825:]", "[OPT:VL,15,128]", "ok")
        elif line == "$$":
            travel = (f"${130 + n}={t:.3f}" for n, t in enumerate(self._travel_mm()))
            self._say("$10=1", "$13=0", "$20=1", "$21=1", "$22=1", "$23=7", f"$30={TOP_SPEED}.")
            self._say("$31=0.", f"$32={self._laser_mode}", *travel, "ok")
        elif line == "":
            self._say("ok")
        elif spindle := _SPINDLE.fullmatch(line):
            self._say(self._turn(int(spindle[1] or 0)))
        else:
            self._say("error:9" if self._state == "Alarm" else "error:20")

    def _turn(self, speed: int) -> str:
        """Set the spindle output; with a laser, nothing shines while nothing is cut."""
        if self._state in ("Alarm", "Jog"):
            return "error:9"
        self.lamp = 0.0 if self._laser_mode else min(speed / TOP_SPEED, 1.0)
        return "ok"

    def _jog(self, words: str, now_s: float) -> str:
        if self._state == "Alarm":
            return "error:9"
        if self._state not in ("Idle", "Jog"):
            return "error:8"
        rest = words
        for mode in ("G53", "G21", "G90"):
            if mode not in rest:
                return "error:16"
            rest = rest.replace(mode, "", 1)
        found = dict(_WORD.findall(rest))
        if _WORD.sub("", rest):
            return "error:2"
        if "F" not in found or float(found["F"]) <= 0:
            return "error:22"
        here = self._queue[-1] if self._queue else tuple(axis.shaft(axis.ends_s()) for axis in self.mechanics.axes)
        target = []
        for n, name in enumerate("XYZ"):
            mm = float(found[name]) if name in found else (here[n] - self._zero_um[n]) / self._unit_um[n]
            if not -self._travel_mm()[n] - 1e-6 <= mm <= 1e-6:
                self.refused += 1
                return "error:15"
            target.append(self._zero_um[n] + mm * self._unit_um[n])
        if len(self._queue) >= PLANNER:
            return "error:14"
        self._state = "Jog"
        if self.mechanics.moving(now_s):
            self._queue.append(tuple(target))
        else:
            self.mechanics.go(target, now_s)
        return "ok"

    def _travel_mm(self) -> tuple[float, ...]:
        spans = ((axis.high - axis.low) / unit for axis, unit in zip(self.mechanics.axes, self._unit_um, strict=True))
        return tuple(spans)

    def _begin_homing(self, now_s: float) -> None:
        for axis in self.mechanics.axes:
            axis.go(axis.shaft(now_s) + axis.low - axis.carriage(now_s), now_s)
        self._state, self._homes_s = "Home", self.mechanics.ends_s()

    def _go_on_homing(self, now_s: float) -> None:
        """On the switches: pull off; then call the place what the travel says it is."""
        if self._pulled_off:
            self._pulled_off, self._homes_s, self._state = False, None, "Idle"
            self._say("ok")
            return
        for n, axis in enumerate(self.mechanics.axes):
            off = min(PULL_OFF_UM, (axis.high - axis.low) / 10)
            at = axis.shaft(now_s) + off
            axis.go(at, now_s)
            self._zero_um[n] = at + (axis.high - axis.low) - off
        self._pulled_off, self._homes_s = True, self.mechanics.ends_s()

    def _report(self, now_s: float) -> None:
        if self._critical or self._homes_s is not None:
            return
        shaft = self.mechanics.shaft(now_s)
        at = ((s - z) / u for s, z, u in zip(shaft, self._zero_um, self._unit_um, strict=True))
        mpos = ",".join(f"{value:.3f}" for value in at)
        state = self._state
        if state in ("Idle", "Jog"):
            state = "Jog" if self.is_busy(now_s) else "Idle"
        state = "Hold:1" if state == "Hold" else state
        text = f"<{state}|MPos:{mpos}|FS:0,{round(TOP_SPEED * self.lamp)}"
        every = 30 if state != "Idle" else 10
        if self._reports % every == 0:
            text += "|WCO:0.000,0.000,0.000"
        elif self._reports % every == 1:
            text += "|Ov:100,100,100"
        self._reports += 1
        self._say(text + ">")

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._send(line.encode() + b"\r\n")


CONTROLLER = Grbl
