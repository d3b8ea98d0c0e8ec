"""Serial drivers on emulated controllers in one thread and virtual time: no sleeping, any fault at any instant."""

from __future__ import annotations

import random
from types import SimpleNamespace

from edge_scanner import config as configs
from edge_scanner.devices.clock import VirtualClock
from edge_scanner.devices.drivers import asi, grbl, prior, sangaboard, squid
from edge_scanner.devices.serial_line import SerialLine
from hil_sim.firmware.base import BOOT_S
from hil_sim.noise import Wire
from hil_sim.rig import StageRig

DRIVERS = {
    "grbl": grbl.GrblStage,
    "squid": squid.SquidStage,
    "asi": asi.AsiStage,
    "sangaboard": sangaboard.SangaboardStage,
    "prior": prior.PriorStage,
}
STEP_S = 0.005
RIG = {"low_um": (-2000, -2000, -300), "high_um": (12000, 12000, 300), "start_um": (3000, 2000, 0)}
SWITCH_HOME = ("stage.x_home_mm=-2", "stage.y_home_mm=-2", "stage.z_home_um=-300")
PULLED_OFF = ("stage.x_home_mm=-1", "stage.y_home_mm=-1", "stage.z_home_um=-240")
MIDDLE = ("stage.x_home_mm=3", "stage.y_home_mm=2", "stage.z_home_um=0")
LIMITS = ("stage.x_min_mm=-2", "stage.x_max_mm=11", "stage.y_min_mm=-2", "stage.y_max_mm=11", "stage.z_max_um=290")


def stage_config(protocol: str, *more: str):
    home = {"grbl": PULLED_OFF, "sangaboard": MIDDLE}.get(protocol, SWITCH_HOME)
    lowest = ("stage.x_min_mm=-1.5", "stage.y_min_mm=-1.5", "stage.z_min_um=-270") if protocol == "grbl" else ()
    given = (f"stage.driver={protocol}", "stage.z_scale=10", "stage.timeout_s=2", "stage.home_timeout_s=20")
    return configs.load(None, (*given, *LIMITS, *lowest, *home, *more))


class WiredPort:
    """What pyserial would be on a cable to the controller, in virtual time."""

    def __init__(self, clock: VirtualClock, rig: StageRig) -> None:
        self.clock = clock
        self.wire = Wire(rig.seed)
        self.firmware = rig.build(lambda reply: self.wire.put(reply, clock.now_s()))
        self.timeout = 0.0
        self.sent: list[bytes] = []
        self._came = bytearray()
        self.dice = random.Random(rig.seed)
        self.accident = lambda port: None

    @property
    def in_waiting(self) -> int:
        self._step()
        return len(self._came)

    def write(self, packet: bytes) -> int:
        self.sent.append(packet)
        self.clock.sleep_s(1e-3)
        self.firmware.tick(self.clock.now_s())
        self.firmware.receive(packet, self.clock.now_s())
        return len(packet)

    def read(self, size: int) -> bytes:
        self.run(self.timeout, until_bytes=True)
        taken, self._came = bytes(self._came[:size]), self._came[size:]
        return taken

    def reset_input_buffer(self) -> None:
        self._step()
        self._came.clear()

    def close(self) -> None:
        pass

    def run(self, seconds: float, until_bytes: bool = False) -> None:
        deadline_s = self.clock.now_s() + seconds
        while not (until_bytes and self._came) and (left_s := deadline_s - self.clock.now_s()) > 0:
            due_s = min(self.firmware.due_s(), self.wire.due_s()) - self.clock.now_s()
            self.clock.sleep_s(max(1e-6, min(left_s, max(due_s, 1e-4), STEP_S)))
            self._step()

    def _step(self) -> None:
        self.accident(self)
        self.firmware.tick(self.clock.now_s())
        self._came += self.wire.take(self.clock.now_s())


class WiredLine(SerialLine):
    """The real line over a wired port."""

    def __init__(self, port: WiredPort) -> None:
        super().__init__("wired", 0, port.clock)
        self.port = port

    def open(self) -> None:
        self._serial, self._failed = self.port, False
        self._received.clear()

    def sleep(self, seconds: float) -> None:
        if not self.halted:
            self.port.run(max(0.0, seconds))


def wired(protocol: str, *more: str, seed: int = 1, **rig):
    """Return driver, port and clock of an emulated controller; nothing is open yet."""
    clock = VirtualClock()
    port = WiredPort(clock, StageRig(protocol=protocol, seed=seed, **RIG, **rig))
    port.firmware.boot(clock.now_s())
    clock.sleep_s(BOOT_S)
    stage = DRIVERS[protocol](stage_config(protocol, *more), clock, WiredLine(port))
    return SimpleNamespace(stage=stage, port=port, clock=clock, firmware=port.firmware, line=stage._line)
