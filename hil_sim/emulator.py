"""One emulated controller as a program: `python -m hil_sim.emulator RIG_JSON LINK CONTROL`.

LINK becomes a serial port; CONTROL is a ZeroMQ REP socket beside it, JSON both ways:

====================================  ===============================================================
`{"cmd": "truth"}`                    `x_um y_um z_um` of the load, `moving`, `light` (0 to 1), monotonic `t`
`{"cmd": "set", "garble": 0.01, …}`   noise (`garble drop lose insert repeat late_s`), `stuck_busy`,
                                      `idle_early`, `dead_lamp`
`{"cmd": "do", "what": …}`            `limit reset unplug replug slip` (`um`: x, y, z), at once, or with
                                      `"when": "moving"` as soon as something moves
`{"cmd": "heard"}`                    halt bytes heard: `halts`, monotonic `halt_t` of the first since this
                                      was asked before, or null; `bytes`; `refused` targets beyond the
                                      controller's limits; `armed` faults
`{"cmd": "end"}`                      the program ends
====================================  ===============================================================
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import zmq

from hil_sim.noise import Wire
from hil_sim.rig import StageRig
from hil_sim.terminal import Terminal

IDLE_S = 0.1


class Emulator:
    """Firmware, line and side socket in one loop, on the machine's clock times `rig.clock`."""

    def __init__(self, rig: StageRig, link: Path) -> None:
        self._clock = rig.clock
        self._wire = Wire(rig.seed)
        self._terminal = Terminal(link)
        self._firmware = rig.build(lambda reply: self._wire.put(reply, self._now_s()))
        self._armed: list[dict[str, Any]] = []
        self._heard: dict[str, Any] = {"halts": 0, "halt_t": None, "bytes": 0}
        self._ending = False

    def run(self, control: str) -> None:
        """Serve until told to end."""
        context: zmq.Context[Any] = zmq.Context()
        side = context.socket(zmq.REP)
        side.bind(control)
        self._terminal.plug()
        try:
            while not self._ending:
                self._step(side)
        finally:
            self._terminal.unplug()
            context.destroy(linger=100)

    def _now_s(self) -> float:
        return time.monotonic() * self._clock

    def _step(self, side: zmq.Socket[Any]) -> None:
        poller = zmq.Poller()
        poller.register(side, zmq.POLLIN)
        if self._terminal.fileno is not None:
            poller.register(self._terminal.fileno, zmq.POLLIN)
        now_s = self._now_s()
        wait_s = (min(self._firmware.due_s(), self._wire.due_s()) - now_s) / self._clock
        ready = dict(poller.poll(int(1000 * min(max(0.0, wait_s), 0.001 if self._armed else IDLE_S))))
        self._take(self._terminal.read())
        self._firmware.tick(self._now_s())
        self._fire()
        self._terminal.write(self._wire.take(self._now_s()))
        if side in ready:
            side.send_json(self._answer(side.recv_json()))  # type: ignore[arg-type]

    def _take(self, data: bytes) -> None:
        if not data:
            return
        before, came_s = self._firmware.halts, time.monotonic()
        self._firmware.receive(data, self._now_s())
        self._heard["bytes"] += len(data)
        if self._firmware.halts > before:
            self._heard |= {"halts": self._firmware.halts, "halt_t": self._heard["halt_t"] or came_s}

    def _fire(self) -> None:
        if self._armed and self._firmware.mechanics.moving(self._now_s()):
            for fault in self._armed:
                self._do(fault)
            self._armed = []

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        now_s, firmware = self._now_s(), self._firmware
        match asked.pop("cmd"):
            case "truth":
                x, y, z = firmware.mechanics.truth(now_s)
                moving = firmware.mechanics.moving(now_s)
                where = {"x_um": x, "y_um": y, "z_um": z}
                return {**where, "moving": moving, "light": firmware.light(), "t": time.monotonic()}
            case "set":
                for key, value in asked.items():
                    setattr(firmware.faults if hasattr(firmware.faults, key) else self._wire.noise, key, value)
            case "do" if asked.get("when") == "moving":
                self._armed.append(asked)
            case "do":
                self._do(asked)
            case "heard":
                told = {**self._heard, "refused": firmware.refused, "armed": len(self._armed)}
                self._heard["halt_t"] = None
                return told
            case "end":
                self._ending = True
            case other:
                return {"ok": False, "error": f"unknown command {other!r}"}
        return {"ok": True}

    def _do(self, fault: dict[str, Any]) -> None:
        now_s = self._now_s()
        match fault["what"]:
            case "limit":
                self._firmware.hit_limit(now_s)
            case "reset":
                self._firmware.boot(now_s)
            case "unplug":
                self._terminal.unplug()
            case "replug":
                self._terminal.plug()
            case "slip":
                for axis, length in zip(self._firmware.mechanics.axes, fault["um"], strict=True):
                    axis.slip(length)


def main(arguments: list[str]) -> None:
    """Run an emulator until it is told to end."""
    rig, link, control = arguments
    Emulator(StageRig.model_validate_json(rig), Path(link)).run(control)


if __name__ == "__main__":
    main(sys.argv[1:])
