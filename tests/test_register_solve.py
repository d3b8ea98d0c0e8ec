"""The block sweep against dense least squares, and the robust loop against planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.register.settle import Gates, settle
from edge_scanner.register.solve import Link, Prior, solve

SIGMA = 5.0


def grid(rows: int, cols: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the model's basis and the neighbours of a grid."""
    y, x = (axis.ravel().astype(float) for axis in np.mgrid[:rows, :cols])
    basis = np.stack([np.ones_like(y), y - y.mean(), x - x.mean()], axis=1)
    at = np.arange(rows * cols).reshape(rows, cols)
    edges = [*zip(at[:, :-1].flat, at[:, 1:].flat, strict=True), *zip(at[:-1].flat, at[1:].flat, strict=True)]
    return basis, [(int(a), int(b)) for a, b in edges]


def prior(terms: int = 3) -> Prior:
    return Prior(np.diag([0.01, 4.0, 4.0][:terms]), np.zeros((terms, 2)))


def dense(basis: np.ndarray, fixed: np.ndarray, links: list[Link], known: Prior) -> tuple[np.ndarray, np.ndarray]:
    """Return the same optimum by numpy's dense least squares over whitened rows (an independent way)."""
    n, k = basis.shape
    free = np.isnan(fixed[:, 0])
    rows, right = [], []
    for i in np.flatnonzero(free):
        row = np.zeros(n + k)
        row[i], row[n:] = 1, -basis[i]
        rows.append(row / SIGMA)
        right.append(np.zeros(2))
    for link in links:
        row = np.zeros(n + k)
        row[link.first], row[link.second] = -1, 1
        rows.append(row / link.sigma_px)
        right.append(np.array(link.shift) / link.sigma_px)
    root = np.linalg.cholesky(known.matrix).T
    rows += list(np.hstack([np.zeros((k, n)), root]))
    right += list(np.linalg.solve(root.T, known.vector))
    a, b = np.array(rows), np.array(right)
    held = np.flatnonzero(~free)
    b = b - a[:, held] @ fixed[held]
    unknown = [*np.flatnonzero(free), *range(n, n + k)]
    found = np.linalg.lstsq(a[:, unknown], b, rcond=None)[0]
    displacement = fixed.copy()
    displacement[free] = found[: int(free.sum())]
    return displacement, found[int(free.sum()) :]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 10_000))
def test_the_sweep_is_the_dense_least_squares(rows: int, cols: int, share: float, held: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis, edges = grid(rows, cols)
    n = len(basis)
    fixed = np.where(rng.random((n, 1)) < held, rng.normal(0, SIGMA, (n, 2)), np.nan)
    edges = [e for e in edges if rng.random() < share]
    links = [Link(a, b, tuple(rng.normal(0, SIGMA, 2)), float(rng.uniform(0.05, 1))) for a, b in edges]
    known = prior().observe(rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), SIGMA)
    displacement, theta = solve(basis, fixed, links, known, SIGMA)
    expected, expected_theta = dense(basis, fixed, links, known)
    np.testing.assert_allclose(displacement, expected, atol=1e-6)
    np.testing.assert_allclose(theta, expected_theta, atol=1e-6)


def test_any_graph_will_do() -> None:
    """Triangles, double links and pieces apart: nothing in the sweep needs a grid."""
    rng = np.random.default_rng(4)
    n = 40
    basis = np.hstack([np.ones((n, 1)), rng.normal(size=(n, 2))])
    pairs = rng.integers(0, n, (90, 2))
    merged = {tuple(sorted(p)) for p in pairs.tolist() if p[0] != p[1]}
    links = [Link(a, b, tuple(rng.normal(size=2)), 0.1) for a, b in sorted(merged)]
    fixed = np.full((n, 2), np.nan)
    np.testing.assert_allclose(solve(basis, fixed, links, prior(), SIGMA)[0], dense(basis, fixed, links, prior())[0])


def scene(rows: int, cols: int, seed: int, error_px: float = SIGMA) -> tuple[np.ndarray, np.ndarray, list[Link]]:
    rng = np.random.default_rng(seed)
    basis, edges = grid(rows, cols)
    truth = rng.normal(0, error_px, (len(basis), 2))
    links = [Link(a, b, tuple(truth[b] - truth[a] + rng.normal(0, 0.02, 2)), 0.02) for a, b in edges]
    return basis, truth, links


def apart(displacement: np.ndarray, truth: np.ndarray) -> np.ndarray:
    off = displacement - truth
    return np.linalg.norm(off - np.median(off, axis=0), axis=1)


@pytest.mark.parametrize("wrong", [2.0, 8.0, 17.0])
@pytest.mark.parametrize("at", [0, 7, 20, 30])
def test_one_false_pair_is_dropped_and_no_other(at: int, wrong: float) -> None:
    basis, truth, links = scene(4, 5, seed=1)
    bad = links[at]
    links[at] = Link(bad.first, bad.second, (bad.shift[0] + wrong, bad.shift[1]), 0.03)
    found = settle(basis, np.full(truth.shape, np.nan), links, prior(), SIGMA, Gates(40.0, 30.0))
    assert np.flatnonzero(~found.kept).tolist() == [at]
    assert apart(found.displacement, truth).max() < 0.06


def test_a_bridge_that_the_stage_cannot_reach_is_dropped() -> None:
    basis, edges = grid(1, 3)
    links = [Link(0, 1, (1.0, 2.0), 0.02), Link(1, 2, (60.0, 0.0), 0.02)]
    assert len(edges) == 2
    found = settle(basis, np.full((3, 2), np.nan), links, prior(), SIGMA, Gates(22.0, 16.0))
    assert found.kept.tolist() == [True, False]
    assert np.abs(found.displacement).max() < 16


def test_a_tile_further_than_its_gate_loses_its_pairs() -> None:
    basis, truth, links = scene(3, 4, seed=2, error_px=1.0)
    truth[5] += (17.0, 0.0)
    links = [Link(k.first, k.second, tuple(truth[k.second] - truth[k.first]), 0.02) for k in links]
    found = settle(basis, np.full(truth.shape, np.nan), links, prior(), 1.0, Gates(22.0, 10.0))
    dropped = {i for i, link in enumerate(links) if 5 in (link.first, link.second)}
    assert set(np.flatnonzero(~found.kept)) == dropped
    assert np.abs(found.displacement[5] - basis[5] @ found.theta).max() < 1e-6


def test_a_stage_looser_than_it_was_said_to_be_is_believed() -> None:
    basis, truth, links = scene(4, 5, seed=3, error_px=6.0)
    found = settle(basis, np.full(truth.shape, np.nan), links, prior(), 1.0, Gates(5.2, 4.0))
    assert found.kept.all()
    assert apart(found.displacement, truth).max() < 0.1


def test_settled_tiles_stay() -> None:
    basis, truth, links = scene(3, 3, seed=5)
    fixed = np.where(np.arange(9)[:, None] < 3, truth, np.nan)
    found = settle(basis, fixed, links, prior(), SIGMA, Gates(40.0, 30.0))
    np.testing.assert_array_equal(found.displacement[:3], truth[:3])
    assert np.linalg.norm(found.displacement - truth, axis=1).max() < 0.06
