"""Places from pair shifts: weighted least squares against a stage model, in one direct sweep.

All quantities are displacements in pixels from the nominal places, columns (y, x); or, where the tiles' brightness is
solved for, its logarithm. A tile's displacement d is drawn by its stage, d = M theta + noise of the stage's sigma, and
tied by its pairs, d_b - d_a = shift + noise of the pair's sigma. The model's few coefficients theta (offset, linear
part of the position, direction of the scan line) are unknowns of the same system with a prior of their own, so what the
images cannot tell stays as the stage says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Link:
    """A measured pair, by positions in the lists of tiles: a displacement (dy, dx) of `second` against `first`."""

    first: int
    second: int
    shift: tuple[float, ...]
    sigma_px: float


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known of the model's k coefficients: information matrix (k, k) and information vector (k, m)."""

    matrix: Array
    vector: Array

    def observe(self, basis: Array, displacement: Array, sigma_px: float) -> Prior:
        """Return the prior sharpened by tiles whose displacement (n, 2) is settled; `basis` is (n, k)."""
        w = sigma_px**-2
        return Prior(self.matrix + w * basis.T @ basis, self.vector + w * basis.T @ displacement)


def solve(basis: Array, fixed: Array, links: Sequence[Link], prior: Prior, sigma_px: float) -> tuple[Array, Array]:
    """Return the displacements (n, m) of all tiles and the model's coefficients (k, m); m is 2 for places.

    Parameters
    ----------
    basis : ndarray, (n, k)
        The model's terms for each tile.
    fixed : ndarray, (n, m)
        Settled displacements; NaN where the tile is free.
    links : sequence of Link
    prior : Prior
        Holds what the settled tiles say of the model already.
    sigma_px : float
        The stage's repeatability.

    Notes
    -----
    Direct and deterministic: the normal equations are block-tridiagonal over the levels of a breadth-first walk of
    the graph, whose width is the window's rows; the model's columns are eliminated by their Schur complement. Cost
    O(n x width^2), memory O(n x width).
    """
    free = np.isnan(fixed[:, 0])
    place = np.cumsum(free) - 1
    n, k, columns = int(free.sum()), basis.shape[1], fixed.shape[1]
    w = sigma_px**-2
    m = basis[free]
    diagonal = np.full(n, w)
    right = np.zeros((n, columns + k))
    right[:, columns:] = w * m
    bonds: dict[tuple[int, int], float] = {}
    for link in links:
        weight = link.sigma_px**-2
        for here, there, sign in ((link.first, link.second, -1.0), (link.second, link.first, 1.0)):
            if not free[here]:
                continue
            diagonal[place[here]] += weight
            right[place[here], :columns] += sign * weight * np.asarray(link.shift)
            if free[there]:
                bonds[int(place[here]), int(place[there])] = -weight
            else:
                right[place[here], :columns] += weight * fixed[there]
    swept = _sweep(diagonal, bonds, right)
    apart, drag = swept[:, :columns], swept[:, columns:]
    schur = prior.matrix + w * (m.T @ m) - w * m.T @ drag
    theta = _dense(schur, prior.vector + w * m.T @ apart)
    displacement = fixed.copy()
    displacement[free] = apart + drag @ theta
    return displacement, theta


def _levels(n: int, bonds: dict[tuple[int, int], float]) -> list[list[int]]:
    """Return breadth-first levels of the graph: a node's neighbours lie in its own level or the ones beside it."""
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for here, there in bonds:
        neighbours[here].append(there)
    seen = [False] * n
    levels: list[list[int]] = []
    for root in range(n):
        level = [] if seen[root] else [root]
        while level:
            levels.append(level)
            for node in level:
                seen[node] = True
            level = sorted({other for node in level for other in neighbours[node] if not seen[other]})
    return levels


def _sweep(diagonal: Array, bonds: dict[tuple[int, int], float], right: Array) -> Array:
    """Solve the symmetric sparse system by block elimination over the levels of its graph."""
    levels = _levels(len(diagonal), bonds)
    where = {node: (at, slot) for at, level in enumerate(levels) for slot, node in enumerate(level)}
    own = [np.diag(diagonal[level]) for level in levels]
    sizes = [*map(len, levels), 0]
    ahead = [np.zeros((sizes[at], sizes[at + 1])) for at in range(len(levels))]
    for (here, there), value in bonds.items():
        (at, i), (beside, j) = where[here], where[there]
        if at == beside:
            own[at][i, j] = value
        elif at < beside:
            ahead[at][i, j] = value
    reduced: list[Array] = []
    pulled: list[Array] = []
    for at, level in enumerate(levels):
        block, rhs = own[at], right[level]
        if at:
            block = block - ahead[at - 1].T @ reduced[-1]
            rhs = rhs - ahead[at - 1].T @ pulled[-1]
        both = _dense(block, np.hstack([ahead[at], rhs]))
        reduced.append(both[:, : ahead[at].shape[1]])
        pulled.append(both[:, ahead[at].shape[1] :])
    solution = np.zeros_like(right)
    after = np.zeros((0, right.shape[1]))
    for at in range(len(levels) - 1, -1, -1):
        after = pulled[at] - reduced[at] @ after
        solution[levels[at]] = after
    return solution


def _dense(matrix: Array, right: Array) -> Array:
    return np.asarray(np.linalg.solve(matrix, right), np.float64)
