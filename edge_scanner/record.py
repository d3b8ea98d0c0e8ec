"""What the report needs to remember: each target, how long each stage took, how much memory the process had."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge_scanner.memory import rss_mib
from edge_scanner.tile import PlacedTile, Tile

FRESH_S = 1.0
SAMPLES = 256


@dataclass(frozen=True, slots=True)
class TileRecord:
    """A tile without its pixels, and its place once it has one."""

    tile: Tile
    placed: PlacedTile | None = None


class Timings:
    """Milliseconds by stage name; thread-safe. Bound: one float a call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ms: dict[str, list[float]] = {}
        self._recent: tuple[float, dict[str, dict[str, float]]] = (-math.inf, {})

    def add(self, stage: str, ms: float) -> None:
        """Note one run of a stage."""
        with self._lock:
            self._ms.setdefault(stage, []).append(ms)

    def add_all(self, timings_ms: Mapping[str, float]) -> None:
        """Note one run of several stages."""
        for stage, ms in timings_ms.items():
            self.add(stage, ms)

    def total_ms(self, *stages: str) -> float:
        """Return the sum over all runs of some stages."""
        with self._lock:
            return sum(sum(self._ms.get(stage, ())) for stage in stages)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return `{stage: {p50_ms, p95_ms}}`."""
        with self._lock:
            copies = {name: list(ms) for name, ms in self._ms.items()}  # sorting would keep the scan waiting
        stages = {name: np.percentile(ms, [50, 95]) for name, ms in copies.items()}
        return {name: {"p50_ms": round(float(p[0]), 3), "p95_ms": round(float(p[1]), 3)} for name, p in stages.items()}

    def recent(self) -> dict[str, dict[str, float]]:
        """Return a summary that is at most a second old: it costs a millisecond, and many may ask. For one thread."""
        now_s = time.monotonic()
        if now_s - self._recent[0] >= FRESH_S:
            self._recent = now_s, self.summary()
        return self._recent[1]


class Records:
    """Every target heard of so far, by index; thread-safe. Bound: a few hundred bytes a target, no pixels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, TileRecord] = {}

    def __len__(self) -> int:
        return len(self._records)

    def tile(self, tile: Tile) -> None:
        """Remember a tile, without its pixels."""
        with self._lock:
            self._records[tile.index] = TileRecord(replace(tile, pixels=None))

    def place(self, placed: PlacedTile) -> None:
        """Remember a tile's place."""
        with self._lock:
            self._records[placed.index] = replace(self._records[placed.index], placed=placed)

    def all(self) -> list[TileRecord]:
        """Return the records in index order."""
        with self._lock:
            return [self._records[index] for index in sorted(self._records)]


class MemoryTrace:
    """Resident memory of the process over a scan's time, real seconds. For one thread; `samples` may be read by any.

    Bound: 256 samples, each the most of the steps that it stands for; when they are full, two become one.

    Parameters
    ----------
    earlier : iterable of (float, float), optional
        Samples of the run that this one goes on with; the time between the two is left out.
    """

    def __init__(self, earlier: Iterable[tuple[float, float]] = ()) -> None:
        self.samples: tuple[tuple[float, float], ...] = tuple((s, mib) for s, mib in earlier)
        self._began_s = time.monotonic() - (self.samples[-1][0] if self.samples else 0.0)
        self._stride, self._steps, self._most_mib = 1, 0, 0.0

    def step(self) -> None:
        """Look how much memory there is; costs some 10 us."""
        self._most_mib = max(self._most_mib, rss_mib())
        self._steps += 1
        if self._steps < self._stride:
            return
        self.samples += ((round(time.monotonic() - self._began_s, 2), round(self._most_mib, 1)),)
        self._steps, self._most_mib = 0, 0.0
        if len(self.samples) >= SAMPLES:
            pairs = zip(self.samples[::2], self.samples[1::2], strict=False)
            self.samples = tuple((later[0], max(first[1], later[1])) for first, later in pairs)
            self._stride *= 2
