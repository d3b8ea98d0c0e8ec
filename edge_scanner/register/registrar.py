"""Registration in flight: tiles in, in any order; scan lines out, in order, each with places that never change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from edge_scanner.errors import ScannerError
from edge_scanner.geometry import MosaicFrame
from edge_scanner.plan import ScanPlan
from edge_scanner.register.gain import gains, with_ratio
from edge_scanner.register.pairwise import NO_MATCH, Match, matches
from edge_scanner.register.settle import Gates, settle
from edge_scanner.register.slips import Edge, Slips
from edge_scanner.register.solve import Array, Link, Prior
from edge_scanner.register.strips import Strip, StripStore, nominal_step
from edge_scanner.register.summary import Pair, RegistrationSummary
from edge_scanner.tile import PlacedTile, Tile, Verdict

LAG_ROWS = 3
QUANTUM_PX = 1 / 256
"""Places are rounded to this, so noise-free tiles of an exact stage lie on whole pixels exactly."""
REACH_SIGMAS = 3.0
SLACK_PX = 1.0
LEAST_REACH_PX = 2.0
LEAST_SIGMA_PX = 0.25
LINEAR_SIGMA = 2e-3
"""How far the frame's matrix may be wrong, sigma: 0.1 degrees, 0.2 % of scale."""
OFFSET_SIGMAS = 10.0
BACKLASH_SIGMAS = 3.0
TERMS = 4

NOTHING_KNOWN: Mapping[Edge, Match] = MappingProxyType({})
Places = dict[int, tuple[float, float]]


class Registrar:
    """Places tiles while the scan runs.

    Row r commits once every target of the rows up to r + 3, or up to the last row, is in the ledger, by a solve over
    exactly those rows in index order with the rows before r held where they were frozen. So the result does not depend
    on the order of arrival, bit for bit. A tile without usable overlaps lies where the fitted stage model puts it.
    Where a pair does not match within the stage's error, the whole strip is searched; lost steps that several pairs
    agree on move all tiles that they concern (see `slips`).

    Memory bound: strips of one scan line (see `StripStore`), the pairs and places of five rows, and one small record a
    pair for the report: O(row length x overlap) of pixels, whatever the slide's height.

    Parameters
    ----------
    plan : ScanPlan
    frame : MosaicFrame
    stage_error_um : float
        Sigma of the stage's repeatability; bounds every shift and every place (three sigma an axis, and a pixel).
    level : bool
        Make tiles as bright as their neighbours, by a gain that is solved for with the places.
    enabled : bool
        False: every tile is committed at once at its nominal place.
    lag_rows : int
        How many rows beyond a row its solve sees.
    cancelled : callable
        Asked before every solve; where it returns True, `add` and `finish` raise AbortedError.

    Attributes
    ----------
    fresh : dict of (int, int) to Match
        The pairs that the last `add` measured.
    """

    def __init__(
        self,
        plan: ScanPlan,
        frame: MosaicFrame,
        *,
        stage_error_um: float,
        level: bool = False,
        enabled: bool = True,
        lag_rows: int = LAG_ROWS,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._plan = plan
        self._frame = frame
        self._enabled, self._level, self._lag_rows, self._cancelled = enabled, level, lag_rows, cancelled
        self._sigma_px = max(stage_error_um / frame.pixel_size_um, LEAST_SIGMA_PX)
        reach_px = REACH_SIGMAS * self._sigma_px
        self._gates = Gates(
            max(LEAST_REACH_PX, math.sqrt(2) * reach_px + SLACK_PX), max(LEAST_REACH_PX, reach_px + SLACK_PX)
        )
        self._search_px = 2 * self._gates.pair_px
        self._strips = StripStore(plan, frame, self._search_px)
        self._ledger: dict[int, dict[int, Verdict]] = {}
        self._previous: list[PlacedTile] = []
        self._theta: Array = np.zeros((TERMS, 2))
        self._matches: dict[tuple[int, int], Match] = {}
        self._next_row = 0
        self._prior = _model_prior(self._sigma_px)
        self._pairs: list[Pair] = []
        self._slips = Slips(self._search_px)
        self._tiles = 0
        self._registered = 0
        self._guesses: dict[int, tuple[float, float]] = {}
        self.fresh: dict[Edge, Match] = {}

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of all committed rows."""
        return tuple(self._pairs)

    @property
    def strip_bytes(self) -> int:
        """Bytes of strips held."""
        return self._strips.nbytes

    def add(self, tile: Tile, known: Mapping[Edge, Match] = NOTHING_KNOWN) -> list[PlacedTile]:
        """Take in a target's outcome; return the tiles of the rows that commit now, in index order.

        Every target is reported exactly once, in any order, blank and rejected ones too.

        Parameters
        ----------
        tile : Tile
        known : mapping of (int, int) to Match, optional
            Pairs of this tile that were measured before, by (first, second) index: a resumed scan has them from its
            journal, and needs the pixels only of tiles that have neighbours still to come.

        Raises
        ------
        ScannerError
            When the target was reported before.
        """
        self._tiles += 1
        if not self._enabled:
            y, x = _rounded(self._nominal(tile.index))
            return [PlacedTile(tile.index, y, x, tile.verdict)]
        row = self._ledger.setdefault(tile.row, {})
        if tile.index in row or tile.row < self._next_row:
            raise ScannerError(f"Target {tile.index} was reported to registration twice.", "Report this as a bug.")
        row[tile.index] = tile.verdict
        shown = tile.verdict is Verdict.ACCEPTED or self._level
        self.fresh = {
            (first, second): self._measured(first, second, a, b)
            for first, second, a, b in self._strips.exchange(tile.index, tile.pixels if shown else None)
            if (first, second) not in known
        }
        self._matches |= {**known, **self.fresh}
        self._guesses[tile.index] = self._guess(tile.index)
        complete = self._next_row
        while len(self._ledger.get(complete, ())) == self._plan.cols:
            complete += 1
        return self._commit(complete)

    def finish(self) -> list[PlacedTile]:
        """Commit what is left, as if targets never reported did not exist."""
        return self._commit(self._plan.rows) if self._enabled else []

    def provisional(self, index: int) -> tuple[float, float]:
        """Return the best guess so far (y, x) of a tile's place, for the live view; depends on the order of arrival."""
        return self._guesses.get(index) or self._modelled(index)

    def summary(self) -> RegistrationSummary:
        """Return the report's figures for the rows committed so far."""
        used = [pair.residual_px for pair in self._pairs if pair.used]
        p50, p95, worst = np.percentile(used, (50, 95, 100)) if used else (math.nan,) * 3
        share = len(used) / len(self._pairs) if self._pairs else 0.0
        return RegistrationSummary(
            self._tiles, self._registered, self._tiles - self._registered, len(self._pairs), len(used), share,
            float(p50), float(p95), float(worst), tuple(self._slips.lost),
        )  # fmt: skip

    def _measured(self, first: int, second: int, a: Strip, b: Strip) -> Match:
        found = self._matched(a, b) if self._textured(first) and self._textured(second) else NO_MATCH
        return with_ratio(found, a, b) if self._level else found

    def _matched(self, first: Strip, second: Strip) -> Match:
        """Return the shift within the stage's error, else one further away, else what there is."""
        searches = matches(first, second, (self._search_px, max(first.shape) / 2))
        found = next(searches)
        if found.trusted:
            return found
        far = next(searches)
        return far if far.trusted and not self._slips.near(far) else found

    def _textured(self, index: int) -> bool:
        return self._ledger[self._plan.target(index).row][index] is Verdict.ACCEPTED

    def _commit(self, complete: int) -> list[PlacedTile]:
        """Commit the rows that may, when the first `complete` rows are in the ledger."""
        placed: list[PlacedTile] = []
        while self._next_row < self._plan.rows and complete >= min(
            self._next_row + self._lag_rows + 1, self._plan.rows
        ):
            placed += self._commit_row(self._next_row)
            self._next_row += 1
        return placed

    def _commit_row(self, row: int) -> list[PlacedTile]:
        frozen = {tile.index: (tile.y_px, tile.x_px) for tile in self._previous if tile.registered}
        window = [index for r in range(row, row + self._lag_rows + 1) for index in self._ledger.get(r, ())]
        tiles = sorted([*frozen, *window])
        self._slips.find([tile.index for tile in self._previous], window, self._matches)
        slot = {index: at for at, index in enumerate(tiles)}
        nominal = np.array([self._expected(i) for i in tiles]).reshape(-1, 2)
        basis = np.array([self._terms(i) for i in tiles]).reshape(-1, TERMS)
        fixed = np.array([frozen.get(i, (math.nan, math.nan)) for i in tiles]).reshape(-1, 2) - nominal
        trusted = [e for e in sorted(self._matches) if e[0] in slot and e[1] in slot and self._matches[e].trusted]
        edges = [edge for edge in trusted if self._slips.explain(*edge, self._matches[edge])]
        links = [self._link(edge, slot, nominal) for edge in edges]
        settled = settle(basis, fixed, links, self._prior, self._sigma_px, self._gates, self._cancelled)
        self._theta = settled.theta
        places = {i: _rounded((y, x)) for i, (y, x) in zip(tiles, nominal + settled.displacement, strict=True)}
        used = {edge for edge, kept in zip(edges, settled.kept, strict=True) if kept}
        placed = self._levelled(self._place(row, places, used), window)
        known = [slot[tile.index] for tile in placed if tile.registered]
        self._prior = self._prior.observe(basis[known], settled.displacement[known], self._sigma_px)
        self._close(row, placed, used)
        return placed

    def _link(self, edge: Edge, slot: dict[int, int], nominal: Array) -> Link:
        """Return the measured displacement less the nominal one."""
        first, second = slot[edge[0]], slot[edge[1]]
        found = self._matches[edge]
        dy, dx = self._offset(*edge, found) - nominal[second] + nominal[first]
        return Link(first, second, (float(dy), float(dx)), found.sigma_px)

    def _place(self, row: int, places: Places, used: set[Edge]) -> list[PlacedTile]:
        """Return the row's tiles for good."""
        squares: dict[int, list[float]] = {}
        for edge in used:
            residual = self._residual(edge, places)
            for index in edge:
                squares.setdefault(index, []).append(residual**2)
        placed = []
        for index, verdict in sorted(self._ledger.get(row, {}).items()):
            of_tile = squares.get(index)
            rms = math.sqrt(math.fsum(of_tile) / len(of_tile)) if of_tile else None
            placed.append(PlacedTile(index, *places[index], verdict, of_tile is not None, rms))
        return placed

    def _levelled(self, placed: list[PlacedTile], window: list[int]) -> list[PlacedTile]:
        """Return the row's tiles with their gains."""
        if not self._level:
            return placed
        held = {tile.index: tile.gain for tile in self._previous}
        tiles = sorted([*held, *window])
        rows = [self._plan.target(index).row for index in tiles]
        gain = dict(zip(tiles, gains(tiles, rows, held, self._matches), strict=True))
        return [replace(tile, gain=gain[tile.index]) for tile in placed]

    def _close(self, row: int, placed: list[PlacedTile], used: set[Edge]) -> None:
        """Write the pairs that are final into the record, and forget what no later row needs."""
        places = {tile.index: (tile.y_px, tile.x_px) for tile in [*self._previous, *placed]}
        textured = {t.index for t in [*self._previous, *placed] if t.verdict is Verdict.ACCEPTED}
        closed = len(self._pairs)
        for edge in sorted(self._matches):
            if edge[0] in places and edge[1] in places:
                found = self._matches.pop(edge)
                residual = self._residual(edge, places, found) if found.trusted else math.nan
                if textured >= {*edge}:
                    self._pairs.append(Pair(*edge, found, edge in used, residual))
        self._slips.note([tile.index for tile in placed], self._pairs[closed:])
        self._registered += sum(tile.registered for tile in placed)
        for tile in self._previous:
            self._guesses.pop(tile.index, None)
        self._guesses.update((tile.index, places[tile.index]) for tile in placed)
        self._previous = placed
        self._ledger.pop(row, None)

    def _residual(self, edge: Edge, places: Places, found: Match | None = None) -> float:
        (ya, xa), (yb, xb) = places[edge[0]], places[edge[1]]
        dy, dx = self._offset(*edge, found or self._matches[edge])
        return math.hypot(yb - ya - dy, xb - xa - dx)

    def _offset(self, first: int, second: int, found: Match) -> tuple[float, float]:
        """Return the measured displacement in mosaic pixels from one tile's corner to the other's."""
        dy, dx = nominal_step(self._frame, self._plan.target(first), self._plan.target(second))
        return dy + found.dy_px, dx + found.dx_px

    def _nominal(self, index: int) -> tuple[float, float]:
        target = self._plan.target(index)
        return self._frame.tile_corner(target.x_um, target.y_um, self._plan.tile_height_px, self._plan.tile_width_px)

    def _expected(self, index: int) -> tuple[float, float]:
        """Return the nominal place, lost steps added."""
        y, x = self._nominal(index)
        dy, dx = self._slips.offset(index)
        return y + dy, x + dx

    def _terms(self, index: int) -> tuple[float, float, float, float]:
        """Return the model's terms: offset, linear part about the canvas' middle, direction of the scan line."""
        y, x = self._nominal(index)
        middle_y, middle_x = self._frame.height_px / 2, self._frame.width_px / 2
        return 1.0, y - middle_y, x - middle_x, 0.5 - self._plan.target(index).row % 2

    def _modelled(self, index: int) -> tuple[float, float]:
        y, x = self._nominal(index) + np.array(self._terms(index)) @ self._theta
        return float(y), float(x)

    def _guess(self, index: int) -> tuple[float, float]:
        """Return the mean place that trusted pairs with tiles seen before give, else the model's."""
        guesses = []
        for edge, found in self._matches.items():
            if index in edge and found.trusted:
                other = edge[0] if edge[1] == index else edge[1]
                dy, dx = self._offset(*edge, found)
                sign = 1 if edge[1] == index else -1
                y, x = self._guesses[other]
                guesses.append((y + sign * dy, x + sign * dx))
        if not guesses:
            return self._modelled(index)
        return sum(y for y, _ in guesses) / len(guesses), sum(x for _, x in guesses) / len(guesses)


def _model_prior(sigma_px: float) -> Prior:
    """Return what is known of the stage model before the scan: zero, to these standard deviations."""
    sigmas = np.array([OFFSET_SIGMAS * sigma_px, LINEAR_SIGMA, LINEAR_SIGMA, BACKLASH_SIGMAS * sigma_px])
    return Prior(np.diag(sigmas**-2), np.zeros((TERMS, 2)))


def _rounded(place: tuple[float, float]) -> tuple[float, float]:
    y, x = place
    return round(y / QUANTUM_PX) * QUANTUM_PX, round(x / QUANTUM_PX) * QUANTUM_PX
