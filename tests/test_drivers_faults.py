"""Serial stages when things go wrong, in virtual time: never a false arrival, never a hang, never beyond the limits."""

import random
import re

import pytest
from driver_rig import DRIVERS, wired
from driver_storm import Storm
from hypothesis import given
from hypothesis import strategies as st

from edge_scanner.devices.contract import check_stage
from edge_scanner.errors import DeviceError, EmergencyStopError, LimitsError, PositionUnknownError
from edge_scanner.geometry import Position

FAR = Position(5000.0, 4000.0, 20.0)
PROTOCOLS = sorted(DRIVERS)
SWITCHED = sorted(set(DRIVERS) - {"sangaboard"})
"""The sangaboard homes to where it stands, so homing cannot bring it back."""
ABSOLUTE = [name for name in PROTOCOLS if DRIVERS[name].absolute]
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
each_switched = pytest.mark.parametrize("protocol", SWITCHED)
each_absolute = pytest.mark.parametrize("protocol", ABSOLUTE)


def homed(protocol, **how):
    rig = wired(protocol, **how)
    rig.stage.open()
    rig.stage.home()
    return rig


def go(rig, target):
    rig.stage.start_move(target)
    return rig.stage.wait()


def off_um(rig, at):
    truth = rig.firmware.mechanics.truth(rig.clock.now_s())
    return max(abs(a - b) for a, b in zip(truth, (at.x_um, at.y_um, at.z_um), strict=True))


def after(seconds, rig, happens):
    """Let something happen once, that much later."""
    due_s = rig.clock.now_s() + seconds

    def accident(port):
        if port.clock.now_s() >= due_s:
            port.accident = lambda _: None
            happens()

    rig.port.accident = accident


@each_protocol
def test_the_contract_is_kept_in_virtual_time(protocol):
    rig = wired(protocol)
    assert [c for c in check_stage(rig.stage, rig.clock, 1.0) if not c.ok] == []


@each_protocol
def test_arrives_where_it_is_sent(protocol):
    rig = homed(protocol)
    for target in (FAR, Position(-1000.0, 10_000.0, -200.0), Position(-1000.0, 10_000.5, -200.3)):
        reached = go(rig, target)
        assert off_um(rig, target) < 0.6
        assert off_um(rig, reached) < 0.6
        assert not rig.stage.busy()


@each_switched
def test_a_reset_in_motion_is_a_fault_and_homing_recovers(protocol):
    for seconds in (0.0, 0.005, 0.02, 0.1, 0.15):
        rig = homed(protocol)
        go(rig, Position(0.0, 0.0, 0.0))
        after(seconds, rig, lambda r=rig: r.firmware.boot(r.clock.now_s()))
        with pytest.raises(DeviceError):
            go(rig, FAR)
        assert rig.stage.position() is None
        with pytest.raises(PositionUnknownError):
            rig.stage.start_move(FAR)
        rig.clock.sleep_s(2)
        rig.stage.home()
        go(rig, FAR)
        assert off_um(rig, FAR) < 0.6


@each_protocol
def test_a_reset_at_rest_is_noticed_before_the_next_move(protocol):
    rig = homed(protocol)
    go(rig, FAR)
    rig.firmware.boot(rig.clock.now_s())
    rig.clock.sleep_s(2)
    before = len(rig.port.sent)
    with pytest.raises(DeviceError):
        rig.stage.start_move(Position(0.0, 0.0, 0.0))
    rig.clock.sleep_s(1)
    assert off_um(rig, FAR) < 0.6
    assert not any(b"$J" in packet or packet.startswith(b"M ") for packet in rig.port.sent[before:])


@pytest.mark.parametrize("protocol", ["grbl", "sangaboard"])
def test_a_board_that_opening_the_port_resets_is_waited_for_and_a_silent_one_not_for_ever(protocol):
    rig = wired(protocol)
    rig.firmware.boot(rig.clock.now_s())
    assert re.match("GRBL 1.1|Sangaboard Firmware v1", rig.stage.open())
    rig.stage.home()
    rig.firmware.receive = lambda data, now_s: None
    began_s = rig.clock.now_s()
    with pytest.raises(DeviceError, match="does not answer like"):
        rig.stage.open()
    assert 3 < rig.clock.now_s() - began_s < 6


@each_protocol
def test_busy_for_ever_ends_in_time(protocol):
    rig = homed(protocol)
    rig.firmware.faults.stuck_busy = True
    began_s = rig.clock.now_s()
    with pytest.raises(DeviceError):
        go(rig, FAR)
    assert rig.clock.now_s() - began_s < 4
    assert rig.stage.position() is None


@each_protocol
def test_silence_ends_in_time(protocol):
    rig = homed(protocol)
    rig.port.wire.noise.lose = 1.0
    began_s = rig.clock.now_s()
    with pytest.raises(DeviceError):
        go(rig, FAR)
    assert rig.clock.now_s() - began_s < 5


@each_protocol
def test_idle_too_early_is_not_believed(protocol):
    rig = homed(protocol)
    rig.firmware.faults.idle_early = True
    go(rig, FAR)
    assert not rig.firmware.mechanics.moving(rig.clock.now_s())
    assert off_um(rig, FAR) < 0.6


@each_protocol
def test_a_limit_switch_is_a_fault(protocol):
    rig = homed(protocol)
    after(0.05, rig, lambda: rig.firmware.hit_limit(rig.clock.now_s()))
    with pytest.raises(DeviceError):
        go(rig, FAR)
    assert rig.stage.position() is None


@each_protocol
def test_late_replies_only_delay(protocol):
    rig = homed(protocol)
    rig.port.wire.noise.late_s = 0.2
    go(rig, FAR)
    assert not rig.firmware.mechanics.moving(rig.clock.now_s())
    assert off_um(rig, FAR) < 0.6


@each_absolute
def test_a_lost_command_is_sent_again(protocol):
    rig = homed(protocol)
    receive, lost = rig.firmware.receive, []

    def deaf(data, now_s):
        is_move = b"$J" in data or data.startswith(b"M ") or (protocol == "squid" and data[1] == 6)
        if is_move and not lost:
            lost.append(data)
        else:
            receive(data, now_s)

    rig.firmware.receive = deaf
    go(rig, FAR)
    assert lost
    assert off_um(rig, FAR) < 0.6


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name not in ABSOLUTE])
def test_a_relative_move_is_never_sent_twice(protocol):
    """Whether the command was lost, or its reply, or the position cannot be read: one command for one target."""
    for share in (0.0, 0.3, 1.0):
        for _ in range(20):
            rig = homed(protocol, seed=_)
            sent = len(rig.port.sent)
            rig.port.wire.noise.lose = share
            if share == 0.0:
                receive = rig.firmware.receive
                moves = (b"mr", b"U", b"D", b"G")
                rig.firmware.receive = lambda d, t, r=receive, m=moves: None if d.startswith(m) else r(d, t)
            try:
                go(rig, FAR if protocol == "prior" else Position(6000.0, 5000.0, 10.0))
            except DeviceError:
                assert rig.stage.position() is None
            assert sum(p.startswith((b"mr", b"U", b"D")) for p in rig.port.sent[sent:]) <= 1


@each_protocol
def test_a_stage_that_ends_elsewhere_is_not_pushed_on(protocol):
    """What a joystick or a stall looks like: at rest, neither where it was nor where it should be."""
    rig = homed(protocol)
    after(0.12, rig, lambda: rig.firmware.mechanics.brake(rig.clock.now_s()))
    with pytest.raises(DeviceError, match="elsewhere"):
        go(rig, Position(9000.0, 9000.0, 100.0))


@each_protocol
@given(st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3))
def test_nothing_is_sent_beyond_the_limits(protocol, at):
    rig = RIGS.setdefault(protocol, None) or RIGS.update({protocol: homed(protocol)}) or RIGS[protocol]
    target, sent = Position(*at), len(rig.port.sent)
    if rig.stage.limits.contains(target):
        go(rig, target)
        assert off_um(rig, target) < 0.6
    else:
        with pytest.raises(LimitsError):
            rig.stage.start_move(target)
        assert len(rig.port.sent) == sent
    assert rig.firmware.refused == 0


RIGS = {}


@each_switched
@pytest.mark.parametrize("during", ["home", "move"])
def test_nothing_follows_a_stop(protocol, during):
    dice = random.Random(protocol + during)
    for _ in range(30):
        rig = homed(protocol) if during == "move" else wired(protocol)
        if during == "home":
            rig.stage.open()
        marks = []

        def stop(rig=rig, marks=marks):
            rig.stage.stop()
            marks.append(len(rig.port.sent))

        after(dice.uniform(0, 0.3), rig, stop)
        with pytest.raises(EmergencyStopError):
            rig.stage.home() if during == "home" else [go(rig, FAR), go(rig, Position(0, 0, 0)), go(rig, FAR)]
        assert rig.port.sent[marks[0] :] == []
        assert rig.stage.position() is None
        with pytest.raises(EmergencyStopError):
            rig.stage.start_move(FAR)
        rig.clock.sleep_s(1)
        halted = rig.firmware.mechanics.truth(rig.clock.now_s())
        rig.clock.sleep_s(5)
        rig.firmware.tick(rig.clock.now_s())
        assert rig.firmware.mechanics.truth(rig.clock.now_s()) == halted
        rig.stage.home()
        go(rig, FAR)
        assert off_um(rig, FAR) < 0.6


@each_protocol
def test_a_storm_of_faults(protocol):
    tally = Storm(protocol, 1).blow(300)
    assert tally.arrived > 30
    assert len(tally.accidents) > 2
