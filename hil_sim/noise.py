"""What happens to bytes on a bad line: garbled, dropped, made up, twice, late. Deterministic by seed and order."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Noise:
    """Rates and delays that are in force.

    Parameters
    ----------
    garble, drop : float
        Share of replies in which one byte is changed, and of replies of which a byte is missing.
    lose : float
        Share of replies that never come.
    insert : float
        Share of replies with a byte too many, of any value.
    repeat : float
        Share of replies that come twice.
    late_s : float
        Delay of every reply.
    """

    garble: float = 0.0
    drop: float = 0.0
    lose: float = 0.0
    insert: float = 0.0
    repeat: float = 0.0
    late_s: float = 0.0


class Wire:
    """The way of replies to the host, with the noise in force; `spoilt` counts the replies that it hurt."""

    def __init__(self, seed: int) -> None:
        self.noise = Noise()
        self._dice = random.Random(seed)
        self.spoilt = 0
        self._under_way: deque[tuple[float, bytes]] = deque()

    def put(self, reply: bytes, now_s: float) -> None:
        """Send a reply on its way."""
        noise, dice = self.noise, self._dice
        data = bytearray(reply)
        lost, garbled, cut = (dice.random() < rate for rate in (noise.lose, noise.garble, noise.drop))
        if garbled and data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        if cut and data:
            del data[dice.randrange(len(data))]
        inserted, twice = (dice.random() < rate for rate in (noise.insert, noise.repeat))
        if inserted:
            data.insert(dice.randrange(len(data) + 1), dice.randrange(256))
        self.spoilt += lost or garbled or cut or inserted or twice
        if lost:
            return
        self._under_way.extend([(now_s + noise.late_s, bytes(data))] * (1 + twice))

    def due_s(self) -> float:
        """Return when the next reply arrives."""
        return self._under_way[0][0] if self._under_way else float("inf")

    def take(self, now_s: float) -> bytes:
        """Return what has arrived."""
        arrived = bytearray()
        while self._under_way and self._under_way[0][0] <= now_s:
            arrived += self._under_way.popleft()[1]
        return bytes(arrived)
