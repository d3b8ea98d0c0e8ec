"""Plans: cover the region, walk in snake order, round-trip through JSON, refuse nonsense."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.errors import PlanError
from edge_scanner.geometry import Limits, MosaicFrame
from edge_scanner.plan import ScanPlan, ScanRegion, auto_overlap_px

sizes = st.floats(0.01, 3.0)


@st.composite
def plans(draw):
    tile = (draw(st.integers(16, 400)), draw(st.integers(16, 400)))
    overlap = draw(st.integers(0, min(tile) // 2))
    region = ScanRegion(draw(st.floats(-5, 5)), draw(st.floats(-5, 5)), draw(sizes), draw(sizes))
    return ScanPlan(region, *tile, draw(st.sampled_from([1.0, 0.5, 3.3])), overlap)


@given(plans())
def test_tiles_cover_the_region_with_at_least_the_overlap(plan):
    targets = list(plan)
    assert [t.index for t in targets] == list(range(len(plan)))
    for size, tile, count, axis in (
        (plan.height_px, plan.tile_height_px, plan.rows, 0),
        (plan.width_px, plan.tile_width_px, plan.cols, 1),
    ):
        corners = [plan.corner_px(n, n)[axis] for n in range(count)]
        assert corners[0] <= 0
        assert corners[-1] + tile >= size
        assert set(np.diff(corners)) <= {tile - plan.overlap_px}
        if count > 1:
            assert corners[1] > 0, "no tile is superfluous"
            assert corners[-2] + tile < size
        assert abs(corners[0] + (corners[-1] + tile - size)) <= 1, "what is left over is shared by both sides"


@given(plans())
def test_snake_order_and_lookup(plan):
    targets = list(plan)
    for a, b in pairwise(targets):
        assert abs(a.row - b.row) + abs(a.col - b.col) == 1
    for t in targets[:: max(1, len(targets) // 7)]:
        assert plan.target(t.index) == t
        assert plan.index_at(t.row, t.col) == t.index


@given(plans())
def test_json_round_trip(plan):
    assert ScanPlan.from_json(plan.to_json()) == plan


@given(plans())
def test_targets_lie_on_the_pixel_lattice(plan):
    frame = plan.frame()
    for t in list(plan)[:5]:
        y, x = frame.tile_corner(t.x_um, t.y_um, plan.tile_height_px, plan.tile_width_px)
        assert (y, x) == pytest.approx(plan.corner_px(t.row, t.col), abs=1e-6)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "1", True, None])
def test_a_region_must_be_finite_and_not_empty(bad):
    with pytest.raises(PlanError):
        ScanRegion(0, 0, bad, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"surprise": 1}, {"region": {}}, {"overlap_px": 1.5}, {"overlap_px": True},
        {"overlap_px": 10_000}, {"pixel_size_um": 0}, {"pixel_size_um": "a"}, {"tile_width_px": 3}, {"region": None},
    ],
)  # fmt: skip
def test_a_wrong_plan_file_is_refused(change):
    good = json.loads(ScanPlan(ScanRegion(0, 0, 1, 1), 100, 120, 1.0, 10).to_json())
    assert ScanPlan.from_dict(good)
    with pytest.raises(PlanError):
        ScanPlan.from_dict({**good, **change})
    with pytest.raises(PlanError):
        ScanPlan.from_json("[" + json.dumps(good))


def test_limits():
    plan = ScanPlan(ScanRegion(0, 0, 1, 1), 100, 100, 1.0, 10)
    plan.check_limits(Limits(0, 1000, 0, 1000, -1, 1), 0)
    with pytest.raises(PlanError) as refused:
        plan.check_limits(Limits(0, 900, 0, 1000, -1, 1), 0)
    assert refused.value.code == "limits.exceeded"


def test_auto_overlap_grows_with_stage_error_and_field_curvature():
    def overlap(**change):
        needs = {"field_curvature_um": 0.0, "depth_of_field_um": 1.0, "stage_error_um": 1.0, **change}
        return auto_overlap_px(1024, 1224, 0.5, **needs)

    base = overlap()
    assert base == 96 + 9  # 96 px to register on, 3 * sqrt(2) * 1 um
    assert overlap(stage_error_um=5.0) == 96 + 43
    assert overlap(field_curvature_um=0.9) == base
    assert base < overlap(field_curvature_um=4.0) < overlap(field_curvature_um=40.0) <= 512


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0, 6.3), st.booleans())
def test_the_frame_inverts(y, x, turn, mirror):
    c, s = np.cos(turn) / 0.5, np.sin(turn) / 0.5
    frame = MosaicFrame(3.0, -4.0, 10, 10, 0.5, -c if mirror else c, -s, -s if mirror else s, c)
    assert frame.to_px(*frame.to_um(y, x)) == pytest.approx((y, x), abs=1e-6)
