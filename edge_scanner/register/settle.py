"""The solve made robust: pairs that contradict a loop or the stage go, worst first, and the rest is solved again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_scanner.errors import AbortedError
from edge_scanner.register.solve import Array, Link, Prior, solve

CLOSURE_PX = 0.5
"""Residual that every pair may have; more, to a limit, where most pairs have it (distortion of the lens)."""
CLOSURE_MEDIANS = 4.0
MOST_CLOSURE_PX = 1.5
STRAY_MEDIANS = 3.0
ENOUGH_LINKS = 12
"""From so many pairs on, a stage that is looser than it was said to be is believed: three sigma of what they show."""


@dataclass(frozen=True, slots=True)
class Gates:
    """How far, pixels along an axis, a pair's shift and a tile's place may lie from the fitted stage model at least."""

    pair_px: float
    tile_px: float


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of a solve.

    Parameters
    ----------
    displacement : ndarray, (n, 2)
    theta : ndarray, (k, 2)
        The stage model's coefficients.
    kept : ndarray, (links,), bool
    """

    displacement: Array
    theta: Array
    kept: np.ndarray[tuple[int], np.dtype[np.bool_]]


def settle(
    basis: Array,
    fixed: Array,
    links: Sequence[Link],
    prior: Prior,
    sigma_px: float,
    gates: Gates,
    cancelled: Callable[[], bool] = lambda: False,
) -> Settled:
    """Solve, drop the worst offender, and repeat until no pair and no tile offends; see `solve` for the arguments.

    A pair offends when its residual is above the closure gate or its shift is further from the fitted model than the
    stage can be; a tile when it would lie further from the model than that: it then loses all its pairs. What the
    stage can be is what the gates say or, where most of many pairs show a looser one, three sigma of theirs.

    Raises
    ------
    AbortedError
        `cancelled`, asked before every solve, returned True.
    """
    first = np.array([link.first for link in links], int)
    second = np.array([link.second for link in links], int)
    shift = np.array([link.shift for link in links], float).reshape(-1, 2)
    sigma = np.array([link.sigma_px for link in links], float)
    free = np.isnan(fixed[:, 0])
    kept = np.ones(len(links), bool)
    while True:
        if cancelled():
            raise AbortedError("The solve for the tiles' places was cancelled.")
        displacement, theta = solve(
            basis, fixed, [link for link, k in zip(links, kept, strict=True) if k], prior, sigma_px
        )
        if not kept.any():
            return Settled(displacement, theta, kept)
        residual = np.linalg.norm(shift - displacement[second] + displacement[first], axis=1)
        closure = np.clip(CLOSURE_MEDIANS * float(np.median(residual[kept])), CLOSURE_PX, MOST_CLOSURE_PX)
        stray = np.abs(shift - (basis[second] - basis[first]) @ theta).max(axis=1)
        shown = STRAY_MEDIANS * float(np.median(stray[kept])) if kept.sum() >= ENOUGH_LINKS else 0.0
        offence = np.maximum(residual / (closure + 3 * sigma), stray / max(gates.pair_px, shown)) * kept
        worst = int(offence.argmax())
        if offence[worst] > 1:
            kept[worst] = False
            continue
        astray = np.where(free, np.abs(displacement - basis @ theta).max(axis=1), 0.0)
        worst = int(astray.argmax())
        if astray[worst] <= max(gates.tile_px, shown / math.sqrt(2)):
            return Settled(displacement, theta, kept)
        kept &= (first != worst) & (second != worst)
