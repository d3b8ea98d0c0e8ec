"""The simulated stage: kinematics on the clock, limits, backlash, repeatability, the emergency stop."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.config import load
from edge_scanner.devices.clock import Clock, RealClock, VirtualClock
from edge_scanner.errors import DeviceError, EmergencyStopError, LimitsError, PositionUnknownError
from edge_scanner.geometry import Position
from edge_scanner.sim.stage import SimStage, duration_s, profile


def homed(*overrides: str, clock: Clock | None = None) -> SimStage:
    stage = SimStage(load(None, overrides), clock or VirtualClock())
    stage.open()
    stage.home()
    return stage


def go(stage: SimStage, x_um: float, y_um: float, z_um: float = 0.0) -> Position:
    stage.start_move(Position(x_um, y_um, z_um))
    stage.wait()
    return stage.true_position()


@given(st.floats(1e-6, 1e5), st.floats(1, 1e5), st.floats(1, 1e6), st.lists(st.floats(0, 1), min_size=2))
def test_a_profile_starts_at_rest_ends_at_rest_and_keeps_its_limits(
    distance: float, speed: float, acceleration: float, shares: list[float]
) -> None:
    total = duration_s(distance, speed, acceleration)
    assert profile(distance, 0, speed, acceleration) == 0
    assert profile(distance, total, speed, acceleration) == distance
    times = sorted(s * total for s in shares)
    gone = [profile(distance, t, speed, acceleration) for t in times]
    for (t0, d0), (t1, d1) in zip(zip(times, gone, strict=True), zip(times[1:], gone[1:], strict=True), strict=False):
        assert -1e-6 * distance <= d1 - d0 <= speed * (t1 - t0) + 1e-6 * distance + 1e-9


def test_a_long_move_takes_the_time_of_a_trapezoid() -> None:
    clock = VirtualClock()
    stage = homed(clock=clock)
    began = clock.now_s()
    go(stage, 25_000, 0)
    assert clock.now_s() - began == pytest.approx(25_000 / 25_000 + 25_000 / 500_000)


def test_position_is_interpolated_while_moving() -> None:
    clock = VirtualClock()
    stage = homed(clock=clock)
    stage.start_move(Position(10_000, 0, 0))
    assert stage.busy()
    clock.sleep_s(0.2)
    middle = stage.position()
    assert middle is not None
    assert 0 < middle.x_um < 10_000
    assert stage.true_position() == middle
    assert stage.wait() == Position(10_000, 0, 0)
    assert not stage.busy()


def test_motion_is_refused_while_the_position_is_unknown() -> None:
    stage = SimStage(load(None), VirtualClock())
    assert stage.busy(), "unknown is busy"
    with pytest.raises(DeviceError):
        stage.home()
    stage.open()
    assert stage.position() is None
    with pytest.raises(PositionUnknownError):
        stage.start_move(Position(0, 0, 0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e9])
@pytest.mark.parametrize("axis", range(3))
def test_targets_outside_the_limits_move_nothing(bad: float, axis: int) -> None:
    stage = homed()
    go(stage, 100, 200, 3)
    target = [100.0, 200.0, 3.0]
    target[axis] = bad
    with pytest.raises(LimitsError):
        stage.start_move(Position(*target))
    assert stage.position() == Position(100, 200, 3)
    assert not stage.busy()


def test_backlash_lags_after_negative_travel() -> None:
    stage = homed("sim.backlash_um=4")
    assert go(stage, 1000, 1000).x_um == 1000
    assert go(stage, 500, 1000).x_um == 504, "came from the right: the screw has turned, the carriage has not followed"
    assert go(stage, 800, 1000).x_um == 800
    assert go(stage, 799, 1000).x_um == 800, "less than the play moves nothing"
    assert go(stage, 799, 300).y_um == 304
    assert stage.position() == Position(799, 300, 0), "the encoder does not see it"


def test_a_wrong_unit_stretches_about_the_origin() -> None:
    stage = homed("sim.scale_error=0.001")
    true = go(stage, 20_000, -1000)
    assert (true.x_um, true.y_um) == pytest.approx((20_020, -1001))


def test_repeatability_is_a_pure_function_of_seed_and_target() -> None:
    one, other = homed("sim.stage_error_um=1"), homed("sim.stage_error_um=1")
    places = [(100.0 * k, 37.0 * k) for k in range(40)]
    forth = [go(one, *p) for p in places]
    back = [go(other, *p) for p in places[::-1]][::-1]
    for a, b in zip(forth, back, strict=True):
        assert (a.x_um, a.y_um) == pytest.approx((b.x_um, b.y_um), abs=1e-9)
    elsewhere = go(homed("sim.stage_error_um=1", "sim.seed=9"), *places[3])
    assert elsewhere.x_um != forth[3].x_um
    again = [go(one, *places[3], z) for z in (0.0, 5.0)]
    assert again[0].x_um == again[1].x_um, "focusing does not move x"
    assert again[1].z_um == 5


def test_repeatability_has_its_sigma_and_no_outliers() -> None:
    stage = homed("sim.stage_error_um=2")
    errors = []
    for k in range(600):
        true = go(stage, 20.0 * k, 0)
        errors += [true.x_um - 20.0 * k, true.y_um]
    assert np.std(errors) == pytest.approx(2, rel=0.08)
    assert abs(np.mean(errors)) < 0.2
    assert np.abs(errors).max() <= 6


def test_errors_do_not_pile_up_in_the_play() -> None:
    stage = homed("sim.stage_error_um=1", "sim.backlash_um=10")
    fresh = homed("sim.stage_error_um=1", "sim.backlash_um=10")
    for k in range(50):
        go(stage, 100.0 + k, 100)
    one, other = go(stage, 200, 100), go(fresh, 200, 100)
    assert (one.x_um, one.y_um) == pytest.approx((other.x_um, other.y_um))


def test_stop_freezes_the_truth_and_latches() -> None:
    clock = VirtualClock()
    stage = homed(clock=clock)
    stage.start_move(Position(10_000, 5000, 0))
    clock.sleep_s(0.1)
    where = stage.true_position()
    stage.stop()
    stage.stop()
    clock.sleep_s(5)
    assert stage.true_position() == where
    assert stage.position() is None
    assert not stage.busy()
    for action in (lambda: stage.start_move(Position(0, 0, 0)), stage.wait):
        with pytest.raises(EmergencyStopError):
            action()
    stage.home()
    assert go(stage, 100, 100) == Position(100, 100, 0)


@pytest.mark.parametrize("doing", ["wait", "home"])
def test_stop_wakes_a_waiter_on_the_real_clock(doing: str) -> None:
    stage = homed("stage.speed_mm_s=1000", "stage.acceleration_mm_s2=1e6", "stage.y_max_mm=1e7", clock=RealClock())
    caught = []

    def drive() -> None:
        try:
            getattr(stage, doing)()
        except EmergencyStopError as error:
            caught.append(error)

    if doing == "wait":
        stage.start_move(Position(0, 1e10, 0))
    thread = threading.Thread(target=drive)
    thread.start()
    while not stage.busy():
        assert thread.is_alive()
    stage.stop()
    thread.join(60)
    assert not thread.is_alive(), "the move would have taken hours"
    assert caught
    assert stage.position() is None
