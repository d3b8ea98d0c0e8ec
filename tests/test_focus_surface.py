"""The focus surface must follow a slide's shape, shrug off wrong points, and depend on nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_scanner.config import Config, SimConfig
from edge_scanner.focus.surface import FocusSurface
from edge_scanner.plan import ScanPlan, ScanRegion
from edge_scanner.sim.surface import FocalSurface

PLAN = ScanPlan(ScanRegion(0, 0, 4, 3), 512, 640, 0.5, 60)
slope = st.floats(-0.01, 0.01)


def surface_of(points: list[tuple[float, float, float]]) -> FocusSurface:
    surface = FocusSurface()
    for point in points:
        surface.add(*point)
    return surface


def test_nothing_is_foretold_from_nothing() -> None:
    surface = FocusSurface()
    assert surface.predict(0, 0) is None
    for bad in ((math.nan, 0, 0), (0, math.inf, 0), (0, 0, math.nan)):
        surface.add(*bad)
    assert surface.predict(0, 0) is None
    surface.add(100, 200, 3.5)
    assert surface.predict(9000, -50) == pytest.approx(3.5)


@settings(max_examples=50, deadline=None)
@given(height=st.floats(-200, 200), along_x=slope, along_y=slope)
def test_a_plane_is_continued(height: float, along_x: float, along_y: float) -> None:
    def plane(x: float, y: float) -> float:
        return height + along_x * x + along_y * y

    grid = [(x, y, plane(x, y)) for y in (0.0, 300.0, 600.0) for x in (0.0, 300.0, 600.0, 900.0)]
    predicted = surface_of(grid).predict(1200, 900)
    assert predicted == pytest.approx(plane(1200, 900), abs=0.4)


def test_a_row_is_continued_and_the_next_row_takes_its_height() -> None:
    surface = surface_of([(x, 0.0, 0.002 * x) for x in range(0, 3000, 300)])
    assert surface.predict(3300, 0) == pytest.approx(6.6, abs=0.2)
    assert surface.predict(2700, 300) == pytest.approx(5.4, abs=0.2)


def test_two_points_close_together_tilt_little() -> None:
    assert abs(surface_of([(0, 0, 0.0), (60, 0, 0.3)]).predict(2000, 0)) < 5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), wrong_um=st.floats(5, 80), sign=st.sampled_from([-1, 1]))
def test_wrong_points_do_not_count(seed: int, wrong_um: float, sign: int) -> None:
    rng = np.random.default_rng(seed)
    grid = [(300.0 * x, 300.0 * y) for y in range(8) for x in range(8)]
    wrong = set(rng.choice(len(grid), 8, replace=False))
    noise = rng.normal(0, 0.1, len(grid))
    points = [(x, y, 0.002 * x + noise[i] + (sign * wrong_um if i in wrong else 0)) for i, (x, y) in enumerate(grid)]
    assert surface_of(points).predict(1050, 1050) == pytest.approx(2.1, abs=0.3)


def test_asking_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    points = [(float(x), float(y), float(z)) for x, y, z in rng.uniform(-3000, 3000, (700, 3)) * (1, 1, 0.001)]
    quiet, asked = FocusSurface(), FocusSurface()
    for point in points:
        asked.predict(point[0], point[1])
        quiet.add(*point)
        asked.add(*point)
    places = rng.uniform(-4000, 4000, (20, 2))
    assert [quiet.predict(*p) for p in places] == [asked.predict(*p) for p in places]


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_bowed_and_bumpy_slide_is_foretold_along_the_scan(seed: int) -> None:
    truth = FocalSurface(SimConfig(seed=seed), Config().stage.limits)
    surface, errors = FocusSurface(), []
    rng = np.random.default_rng(seed)
    held: list[tuple[float, float, float]] = []
    for target in PLAN:
        z_um = truth.z_um(target.x_um, target.y_um)
        predicted = surface.predict(target.x_um, target.y_um)
        if target.row > 0:
            assert predicted is not None
            errors.append(abs(predicted - z_um))
        held.append((target.x_um, target.y_um, z_um + rng.normal(0, 0.1)))
        if len(held) > 1:
            surface.add(*held.pop(0))
    assert np.median(errors) < 0.25
    assert max(errors) < 1.5
