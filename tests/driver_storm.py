"""A storm of faults on a serial stage: spoilt and late replies, accidents at random instants, against all its promises.

Promised, and asserted at every move: the true stage never leaves the limits, no relative move is sent twice, "done" is
never said while the true stage moves or is elsewhere, and nothing takes longer than its time-outs allow. The tests run
a few hundred faults of each protocol; `python tests/driver_storm.py 10000 [PROTOCOL…]` runs as many as wanted.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from driver_rig import DRIVERS, wired

from edge_scanner.errors import DeviceError
from edge_scanner.geometry import Position

NEAR_UM = 6.0
BELIEVED_UM = 0.6
LONGEST_S = 30.0
RELATIVE = (b"mr", b"U", b"D")


@dataclass
class Tally:
    """What a storm did, and how the moves in it ended."""

    spoilt: int = 0
    accidents: Counter = field(default_factory=Counter)
    arrived: int = 0
    refused: int = 0
    slowest_s: float = 0.0


class Storm:
    """One protocol in bad weather; a sangaboard is replaced after a failure, since it cannot find its place."""

    def __init__(self, protocol: str, seed: int) -> None:
        self._protocol, self._seed = protocol, seed
        self._dice = random.Random(f"{protocol}{seed}")
        self.tally = Tally()
        self._begin()

    def blow(self, faults: int) -> Tally:
        """Go on until so many replies were spoilt, and a twentieth as many accidents happened."""
        while self.tally.spoilt < faults or self.tally.accidents.total() < faults / 20:
            self._move()
        return self.tally

    def _begin(self) -> None:
        self._seed += 1
        self._rig = wired(self._protocol, seed=self._seed)
        self._rig.stage.open()
        self._rig.stage.home()

    def _move(self) -> None:
        rig, dice, limits = self._rig, self._dice, self._rig.stage.limits
        noise = rig.port.wire.noise
        for kind in ("garble", "drop", "lose", "insert", "repeat"):
            setattr(noise, kind, dice.choice((0, 0, 0.02, 0.3)))
        noise.late_s = dice.choice((0, 0, 0, dice.uniform(0, 0.5)))
        self._due_s = rig.clock.now_s() + dice.uniform(0, 0.4)
        self._happens = dice.choice(self._accidents()) if dice.random() < 0.3 else None
        rig.port.accident = self._watch
        target = Position(
            dice.uniform(limits.x_min_um, limits.x_max_um),
            dice.uniform(limits.y_min_um, limits.y_max_um),
            dice.uniform(limits.z_min_um, limits.z_max_um),
        )
        began_s, sent, spoilt = rig.clock.now_s(), len(rig.port.sent), rig.port.wire.spoilt
        try:
            rig.stage.start_move(target)
            at = rig.stage.wait()
        except DeviceError:
            assert rig.stage.position() is None
            self.tally.refused += 1
            self._end_move(sent, began_s, spoilt)
            self._recover()
        else:
            self.tally.arrived += 1
            assert not rig.firmware.mechanics.moving(rig.clock.now_s()), "done while it moves"
            assert self._off_um(at) < BELIEVED_UM, "believed to be elsewhere"
            assert self._off_um(target) < NEAR_UM, "not where it was sent"
            self._end_move(sent, began_s, spoilt)

    def _end_move(self, sent: int, began_s: float, spoilt: int) -> None:
        rig = self._rig
        lasted_s = rig.clock.now_s() - began_s
        assert lasted_s < LONGEST_S, "a hang"
        assert sum(packet.startswith(RELATIVE) for packet in rig.port.sent[sent:]) <= 1, "a relative move sent twice"
        assert rig.firmware.refused == 0
        self.tally.slowest_s = max(self.tally.slowest_s, lasted_s)
        self.tally.spoilt += rig.port.wire.spoilt - spoilt

    def _recover(self) -> None:
        """Let the weather clear, and home."""
        if self._protocol == "sangaboard":
            self._begin()
            return
        rig = self._rig
        rig.port.accident = lambda _: None
        noise, faults = rig.port.wire.noise, rig.firmware.faults
        for kind in ("garble", "drop", "lose", "insert", "repeat", "late_s"):
            setattr(noise, kind, 0.0)
        faults.stuck_busy = faults.idle_early = False
        rig.clock.sleep_s(3)
        rig.stage.home()

    def _watch(self, port: object) -> None:
        """Called at every step of time: let happen what is due, and see that the stage stays where it may be."""
        rig, limits = self._rig, self._rig.stage.limits
        now_s = rig.clock.now_s()
        if self._happens is not None and now_s >= self._due_s:
            name, happen = self._happens
            self.tally.accidents[name] += 1
            self._happens = None
            happen()
        x, y, z = rig.firmware.mechanics.truth(now_s)
        inside = limits.x_min_um - NEAR_UM <= x <= limits.x_max_um + NEAR_UM
        inside &= limits.y_min_um - NEAR_UM <= y <= limits.y_max_um + NEAR_UM
        assert inside and limits.z_min_um - NEAR_UM <= z <= limits.z_max_um + NEAR_UM, f"beyond the limits: {x, y, z}"

    def _accidents(self):
        rig = self._rig
        faults = rig.firmware.faults
        return (
            ("reset", lambda: rig.firmware.boot(rig.clock.now_s())),
            ("limit switch", lambda: rig.firmware.hit_limit(rig.clock.now_s())),
            ("stuck busy", lambda: setattr(faults, "stuck_busy", True)),
            ("idle too early", lambda: setattr(faults, "idle_early", True)),
        )

    def _off_um(self, at: Position) -> float:
        truth = self._rig.firmware.mechanics.truth(self._rig.clock.now_s())
        return max(abs(a - b) for a, b in zip(truth, (at.x_um, at.y_um, at.z_um), strict=True))


def main(words: list[str]) -> None:
    faults = next((int(word) for word in words if word.isdigit()), 10_000)
    for protocol in [word for word in words if not word.isdigit()] or sorted(DRIVERS):
        began_s = time.monotonic()
        tally = Storm(protocol, 0).blow(faults)
        accidents = ", ".join(f"{n} {name}" for name, n in sorted(tally.accidents.items()))
        print(
            f"{protocol:10} {tally.spoilt} spoilt replies, {accidents}; {tally.arrived} moves arrived, "
            f"{tally.refused} ended as faults; slowest {tally.slowest_s:.1f} s of {LONGEST_S:g} s; "
            f"{time.monotonic() - began_s:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
