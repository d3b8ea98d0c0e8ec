"""Places corrected by what the overlaps show.

The pair matching and the solve are the online registration's, here over all tiles at once and for any arrangement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import UsageError
from edge_scanner.fuse.sources import TileSet
from edge_scanner.fuse.tiles import TileReader, common_shape
from edge_scanner.fuse.transforms import Matrix, checked
from edge_scanner.geometry import Box
from edge_scanner.register.gain import gains, with_ratio
from edge_scanner.register.pairwise import Match, match
from edge_scanner.register.settle import Gates, Settled, settle
from edge_scanner.register.solve import Link, Prior

Array = NDArray[np.float64]

STRIP_PX = 96
LEAST_OVERLAP_PX = 16
LINEAR_SIGMA = 5e-3
"""How far the listed places may be wrong as a whole, sigma: 0.3 degrees, 0.5 % of scale."""
OFFSET_SIGMAS = 10.0
QUANTUM_PX = 1 / 256


@dataclass(frozen=True, slots=True)
class Alignment:
    """What registration found.

    Parameters
    ----------
    transforms : tuple of ndarray
    edges : int
        Overlaps that the solve used.
    pairs : int
        Overlaps that were looked at.
    residual_px_p50, residual_px_p95 : float or None
        Between measured and final shifts of the edges; None when there is none.
    gains : tuple of float or None
        Factors that make the tiles as bright as their neighbours; None where that was not asked for.
    """

    transforms: tuple[Matrix, ...]
    edges: int
    pairs: int
    residual_px_p50: float | None
    residual_px_p95: float | None
    gains: tuple[float, ...] | None


def align(
    tiles: TileSet,
    stage_error_px: float,
    cache_bytes: int,
    progress: Callable[[float], None] = lambda _: None,
    *,
    level: bool = False,
) -> Alignment:
    """Correct the places of tiles by matching their overlaps.

    A tile without usable overlaps lies where the linear model that was fitted to the others puts it.

    Memory bound: `cache_bytes` of tiles, and the strips of tiles whose neighbours have not been read yet: about one
    row of them.

    Parameters
    ----------
    tiles : TileSet
        All turned and scaled alike.
    stage_error_px : float
        One sigma of the error of the listed places; overlaps are searched for it and tiles stay within three of it.
    cache_bytes : int
    progress : callable
    level : bool
        Solve for the tiles' brightness too.

    Raises
    ------
    UsageError
        The tiles are not all turned alike, or the error is not above zero.
    SourceError
        When a tile cannot be read.
    """
    if not (stage_error_px > 0 and math.isfinite(stage_error_px)):
        raise UsageError(f"A stage error of {stage_error_px} px cannot be.", "Give pixels above zero.")
    shape = common_shape(tiles.tiles)
    height, width = shape.shape[:2]
    matrices = checked(tiles.transforms, len(tiles.tiles), 2, (width, height))
    turn = matrices[0].copy()
    turn[:2, 2] = 0
    if any(np.abs(m[:, :2] - turn[:, :2]).max() * max(height, width) > 0.01 for m in matrices):
        raise UsageError("Only tiles that are all turned alike can be registered.", "Leave --register out.")
    back = np.linalg.inv(turn)
    nominal = np.array([(back @ m[:, 2])[1::-1] for m in matrices])
    reach = 3 * stage_error_px
    gates = Gates(max(2.0, math.sqrt(2) * reach + 1), max(2.0, reach + 1))
    reader = TileReader(tiles.tiles, shape, cache_bytes)
    found = _matches(reader, nominal, (height, width), 2 * gates.pair_px, progress, level)
    links = [Link(a, b, _shift(nominal, a, b, m), m.sigma_px) for (a, b), m in sorted(found.items()) if m.trusted]
    settled = _settled(nominal, links, max(stage_error_px, 0.25), gates)
    places = np.round((nominal + settled.displacement) / QUANTUM_PX) * QUANTUM_PX
    used = [link for link, kept in zip(links, settled.kept, strict=True) if kept]
    d = settled.displacement
    residuals = [math.hypot(*(np.asarray(k.shift) - d[k.second] + d[k.first])) for k in used]
    p50, p95 = (float(v) for v in np.percentile(residuals, (50, 95))) if residuals else (None, None)
    level_by = tuple(gains(range(len(nominal)), _rows(nominal, height), {}, found)) if level else None
    return Alignment(tuple(_moved(turn, y, x) for y, x in places), len(used), len(found), p50, p95, level_by)


def _moved(turn: Matrix, y: float, x: float) -> Matrix:
    moved = turn.copy()
    moved[:, 2] = turn @ np.array([x, y, 1.0])
    return moved


def _shift(nominal: Array, first: int, second: int, found: Match) -> tuple[float, float]:
    """Return the measured displacement of the second tile against the first, less the nominal one."""
    measured = _step(nominal, first, second) + np.array([found.dy_px, found.dx_px])
    dy, dx = measured - (nominal[second] - nominal[first])
    return float(dy), float(dx)


def _step(nominal: Array, first: int, second: int) -> NDArray[np.int64]:
    return np.asarray(np.rint(nominal[second] - nominal[first]), np.int64)


def _settled(nominal: Array, links: Sequence[Link], sigma_px: float, gates: Gates) -> Settled:
    basis = np.column_stack([np.ones(len(nominal)), nominal - nominal.mean(axis=0)])
    sigmas = np.array([OFFSET_SIGMAS * sigma_px, LINEAR_SIGMA, LINEAR_SIGMA])
    prior = Prior(np.diag(sigmas**-2), np.zeros((3, 2)))
    return settle(basis, np.full((len(nominal), 2), math.nan), links, prior, sigma_px, gates)


def _matches(
    reader: TileReader,
    nominal: Array,
    sides: tuple[int, int],
    reach_px: float,
    progress: Callable[[float], None],
    level: bool,
) -> dict[tuple[int, int], Match]:
    """Match every pair of neighbours; each tile is read once."""
    rows = _rows(nominal, sides[0])
    order = sorted(range(len(nominal)), key=lambda i: (rows[i], nominal[i, 1]))
    waiting: dict[tuple[int, int], NDArray[Any]] = {}
    found = {}
    for done, index in enumerate(order, 1):
        tile = reader.tile(index)
        for other in _neighbours(nominal, index, sides):
            strip = _strip(tile, _overlap(nominal, index, other, sides, reach_px))
            if (waited := waiting.pop((other, index), None)) is None:
                waiting[index, other] = strip
            else:
                first, second = (strip, waited) if index < other else (waited, strip)
                pair = match(first, second, reach_px)
                found[min(index, other), max(index, other)] = with_ratio(pair, first, second) if level else pair
        progress(done / len(order))
    return found


def _rows(nominal: Array, height: int) -> list[int]:
    """Return a number for each tile that those side by side have in common."""
    return [round(y / (height / 2)) for y in nominal[:, 0].tolist()]


def _neighbours(nominal: Array, index: int, sides: tuple[int, int]) -> Iterator[int]:
    """Yield the tiles that share a long enough edge."""
    common = np.asarray(sides) - np.abs(nominal - nominal[index])
    long_enough = (common / np.asarray(sides)).max(axis=1) >= 0.5
    for other in np.flatnonzero(long_enough & (common.min(axis=1) >= LEAST_OVERLAP_PX)):
        if other != index:
            yield int(other)


def _overlap(nominal: Array, own: int, other: int, sides: tuple[int, int], reach_px: float) -> Box:
    """Return the overlap in the own tile's pixels, narrowed about its middle to what the search needs."""
    dy, dx = (int(v) for v in (_step(nominal, own, other) if own < other else -_step(nominal, other, own)))
    whole = Box(0, 0, *sides)
    box = whole.intersect(whole.shifted(dy, dx))
    spare_y, spare_x = (max(0, n - max(STRIP_PX, 3 * round(reach_px))) for n in (box.height, box.width))
    if box.width <= box.height:
        return Box(box.y0, box.x0 + spare_x // 2, box.y1, box.x1 - (spare_x - spare_x // 2))
    return Box(box.y0 + spare_y // 2, box.x0, box.y1 - (spare_y - spare_y // 2), box.x1)


def _strip(tile: NDArray[Any], box: Box) -> NDArray[Any]:
    part = tile[box.y0 : box.y1, box.x0 : box.x1]
    if part.ndim == 3 and part.shape[2] == 3:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(part), cv2.COLOR_RGB2GRAY))
    return part.mean(axis=2, dtype=np.float32) if part.ndim == 3 else part.copy()
