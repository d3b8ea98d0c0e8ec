"""The solve made robust: pairs that contradict a loop or the stage go, worst first, and the rest is solved again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_scanner.register.solve import Array, Link, Prior, solve

CLOSURE_PX = 0.5
"""Residual that every pair may have; more only where most pairs have it (distortion of the lens)."""
CLOSURE_MEDIANS = 4.0


@dataclass(frozen=True, slots=True)
class Gates:
    """How far, pixels along an axis, a pair's shift and a tile's place may lie from the fitted stage model."""

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


def settle(basis: Array, fixed: Array, links: Sequence[Link], prior: Prior, sigma_px: float, gates: Gates) -> Settled:
    """Solve, drop the worst offender, and repeat until no pair and no tile offends; see `solve` for the arguments.

    A pair offends when its residual is above the closure gate or its shift is further from the fitted model than the
    stage can be; a tile when it would lie further from the model than that: it then loses all its pairs.
    """
    first = np.array([link.first for link in links], int)
    second = np.array([link.second for link in links], int)
    shift = np.array([link.shift for link in links], float).reshape(-1, 2)
    sigma = np.array([link.sigma_px for link in links], float)
    free = np.isnan(fixed[:, 0])
    kept = np.ones(len(links), bool)
    while True:
        displacement, theta = solve(
            basis, fixed, [link for link, k in zip(links, kept, strict=True) if k], prior, sigma_px
        )
        if not kept.any():
            return Settled(displacement, theta, kept)
        residual = np.linalg.norm(shift - displacement[second] + displacement[first], axis=1)
        closure = max(CLOSURE_PX, CLOSURE_MEDIANS * float(np.median(residual[kept])))
        stray = np.abs(shift - (basis[second] - basis[first]) @ theta).max(axis=1)
        offence = np.where(kept, np.maximum(residual / (closure + 3 * sigma), stray / gates.pair_px), 0.0)
        worst = int(offence.argmax())
        if offence[worst] > 1:
            kept[worst] = False
            continue
        astray = np.where(free, np.abs(displacement - basis @ theta).max(axis=1), 0.0)
        worst = int(astray.argmax())
        if astray[worst] <= gates.tile_px:
            return Settled(displacement, theta, kept)
        kept &= (first != worst) & (second != worst)
