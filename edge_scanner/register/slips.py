"""Lost steps: groups of tiles that hang together among themselves, but lie elsewhere than the stage said.

A stage that loses steps goes on as if nothing had happened: the tiles after it agree with each other, and disagree with
those before by one and the same vector, far beyond the stage's error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from edge_scanner.register.pairwise import Match
from edge_scanner.register.summary import LostSteps, Pair

Shift = tuple[float, float]
Edge = tuple[int, int]

VOTES = 3
"""So many pairs must agree before tiles are moved that far: one alone may have seen a likeness."""
NONE: Shift = (0.0, 0.0)


class Slips:
    """The lost steps of one scan; bound: the tiles of one window.

    Parameters
    ----------
    near_px : float
        Shifts up to this, along an axis, may be the stage's error; larger ones that agree within it are lost steps.

    Attributes
    ----------
    lost : list of LostSteps
        Those of the rows that are committed.
    """

    def __init__(self, near_px: float) -> None:
        self._near_px = near_px
        self._offsets: dict[int, Shift] = {}
        self._before = NONE
        self.lost: list[LostSteps] = []

    def near(self, found: Match) -> bool:
        """Tell whether a shift may be the stage's error."""
        return max(abs(found.dy_px), abs(found.dx_px)) <= self._near_px

    def explain(self, first: int, second: int, found: Match) -> bool:
        """Tell whether a pair agrees, within the stage's error, with the lost steps of its tiles."""
        (ya, xa), (yb, xb) = self._offsets[first], self._offsets[second]
        return max(abs(found.dy_px - yb + ya), abs(found.dx_px - xb + xa)) <= self._near_px

    def offset(self, index: int) -> Shift:
        """Return how far (y, x) a tile of the window lies from where the stage says, lost steps only."""
        return self._offsets[index]

    def find(self, settled: Sequence[int], window: Sequence[int], matches: Mapping[Edge, Match]) -> None:
        """Tell which tiles of a window lie off by lost steps; those of the row before it keep their offsets."""
        tiles = sorted([*settled, *window])
        among = set(tiles)
        trusted = {edge: m for edge, m in sorted(matches.items()) if m.trusted and among >= {*edge}}
        far = {edge: (m.dy_px, m.dx_px) for edge, m in trusted.items() if not self.near(m)}
        held = {index: self._offsets[index] for index in sorted(settled)}
        near = [edge for edge in trusted if edge not in far]
        self._offsets = offsets(tiles, held, near, far, self._near_px, self._before)

    def note(self, placed: Sequence[int], pairs: Sequence[Pair]) -> None:
        """Write down what a committed row shows; `pairs` are those that are final with it."""
        for index in placed:
            (y, x), (before_y, before_x) = self._offsets[index], self._before
            if (y, x) != (before_y, before_x):
                self.lost.append(LostSteps(index, round(y - before_y, 1), round(x - before_x, 1), corrected=True))
            self._before = y, x
        odd = [p for p in pairs if p.match.trusted and not self.explain(p.first, p.second, p.match)]
        if odd:
            one = min(odd, key=lambda pair: max(pair.first, pair.second))
            sign = 1 if one.second > one.first else -1
            y, x = round(sign * one.match.dy_px, 1), round(sign * one.match.dx_px, 1)
            self.lost.append(LostSteps(max(one.first, one.second), y, x, corrected=False))


def offsets(
    tiles: Iterable[int],
    held: Mapping[int, Shift],
    near: Iterable[Edge],
    far: Mapping[Edge, Shift],
    tolerance_px: float,
    carry: Shift = NONE,
) -> dict[int, Shift]:
    """Return how far each tile lies from where the stage says, whole vectors of lost steps only.

    Parameters
    ----------
    tiles : iterable of int
        In scan order.
    held : mapping of int to (y, x)
        Tiles among them whose offset is settled, in scan order.
    near : iterable of (int, int)
        Pairs that agree with the stage within its error: both have the same offset.
    far : mapping of (int, int) to (y, x)
        Shifts, px, of the second tile of a pair against the first that the stage's error does not explain.
    tolerance_px : float
        How far, along an axis, two such shifts may differ.
    carry : (y, x)
        Offset of the tile before the first.

    Returns
    -------
    dict of int to (y, x)
        A tile that nothing ties to others has the offset of the one scanned before it.
    """
    order = list(tiles)
    settled = [(a, b) for a, b in pairwise(held) if held[a] == held[b]]
    group = _groups(order, [*near, *settled])
    votes = _votes(group, far, tolerance_px)
    known: dict[int, Shift] = {}
    for tile, offset in held.items():
        known.setdefault(group[tile], offset)
    found: dict[int, Shift] = {}
    _spread(known, votes)
    for tile in order:
        if group[tile] not in known:
            known[group[tile]] = carry
            _spread(known, votes)
        found[tile] = carry = known[group[tile]]
    return found


def _groups(tiles: Sequence[int], near: Iterable[Edge]) -> dict[int, int]:
    """Return, for each tile, the first tile of those that it hangs together with."""
    group = {tile: tile for tile in tiles}

    def first(tile: int) -> int:
        while group[tile] != tile:
            tile = group[tile]
        return tile

    for a, b in near:
        low, high = sorted((first(a), first(b)))
        group[high] = low
    return {tile: first(tile) for tile in tiles}


def _votes(group: Mapping[int, int], far: Mapping[Edge, Shift], tolerance_px: float) -> dict[Edge, Shift]:
    """Return the shift between two groups where at least three pairs, and most of them, agree."""
    between: dict[Edge, list[Shift]] = {}
    for (a, b), (dy, dx) in far.items():
        if group[a] < group[b]:
            between.setdefault((group[a], group[b]), []).append((dy, dx))
        elif group[a] > group[b]:
            between.setdefault((group[b], group[a]), []).append((-dy, -dx))
    agreed = {}
    for groups, shifts in between.items():
        middle = np.median(shifts, axis=0)
        agree = int((np.abs(np.asarray(shifts) - middle).max(axis=1) <= tolerance_px).sum())
        if agree >= VOTES and 2 * agree > len(shifts):
            agreed[groups] = (float(middle[0]), float(middle[1]))
    return agreed


def _spread(known: dict[int, Shift], votes: Mapping[Edge, Shift]) -> None:
    """Carry offsets from groups that have one to those that are tied to them."""
    grown = True
    while grown:
        grown = False
        for (a, b), (dy, dx) in votes.items():
            if a in known and b not in known:
                known[b], grown = (known[a][0] + dy, known[a][1] + dx), True
            elif b in known and a not in known:
                known[a], grown = (known[b][0] - dy, known[b][1] - dx), True
