"""Light through the stage's controller and by GPIO: what is sent, read back, and that it is off when it must be."""

import random

import pytest
from driver_rig import DRIVERS, stage_config, wired

from edge_scanner.devices.contract import check_illumination
from edge_scanner.devices.drivers import gpio, grbl, squid
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, DeviceError, EmergencyStopError
from edge_scanner.geometry import Position
from hil_sim.rig import StageRig

LIGHTS = {"grbl": grbl, "squid": squid}
FAR = Position(5000.0, 4000.0, 20.0)
each_light = pytest.mark.parametrize("protocol", LIGHTS)


def lit(protocol, *more, home=True, **how):
    """Return a homed rig and its light."""
    rig = wired(protocol, *more, **how)
    rig.light = LIGHTS[protocol].make_illumination(stage_config(protocol, *more), rig.clock, rig.stage)
    rig.stage.open()
    if home:
        rig.stage.home()
    return rig


def lamp(rig):
    rig.port.run(0.1)
    return rig.firmware.light()


@each_light
def test_the_contract(protocol):
    rig = lit(protocol)
    assert [c for c in check_illumination(rig.light) if not c.ok] == []
    assert lamp(rig) == 0.0
    rig.stage.close()
    assert [c.name for c in check_illumination(rig.light) if not c.ok] == ["switches on, twice too"], "it is closed"
    assert [c for c in check_illumination(rig.light, rig.stage) if not c.ok] == []


@each_light
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_the_level_arrives_and_the_stage_moves_as_before(protocol, level):
    rig = lit(protocol, f"illumination.level={level}")
    for _ in range(3):
        rig.light.on()
        assert lamp(rig) == pytest.approx(level, abs=0.003)
        rig.stage.start_move(FAR)
        rig.stage.wait()
        rig.light.off()
        assert lamp(rig) == 0.0
        assert rig.stage.position() is not None
        rig.stage.start_move(Position(0.0, 0.0, 0.0))
        rig.stage.wait()


@each_light
def test_it_is_off_after_a_stop_and_stays_off(protocol):
    rig = lit(protocol)
    rig.light.on()
    rig.stage.start_move(FAR)
    rig.stage.stop()
    sent = len(rig.port.sent)
    rig.light.off()
    assert len(rig.port.sent) == sent + 1, "halt first, then the light"
    assert lamp(rig) == 0.0
    with pytest.raises(EmergencyStopError):
        rig.light.on()
    assert lamp(rig) == 0.0
    rig.stage.home()
    assert lamp(rig) == 0.0


@each_light
@pytest.mark.parametrize("fault", ["reset", "limit", "stuck"])
def test_it_is_off_after_a_fault(protocol, fault):
    rig = lit(protocol)
    rig.light.on()
    rig.stage.start_move(FAR)
    now_s = rig.clock.now_s()
    if fault == "reset":
        rig.firmware.boot(now_s)
    elif fault == "limit":
        rig.firmware.hit_limit(now_s)
    else:
        rig.firmware.faults.stuck_busy = True
    with pytest.raises(DeviceError):
        rig.stage.wait()
    rig.light.off()
    assert lamp(rig) == 0.0


@each_light
def test_switching_off_during_a_move_does_not_disturb_it(protocol):
    rig = lit(protocol)
    rig.light.on()
    rig.stage.start_move(FAR)
    rig.light.off()
    rig.stage.wait()
    rig.light.off()
    assert lamp(rig) == 0.0


@each_light
def test_on_a_bad_line_it_is_on_or_an_error(protocol):
    dice, ended = random.Random(protocol), {True: 0, False: 0}
    for seed in range(40):
        rig = lit(protocol, seed=seed)
        noise = rig.port.wire.noise
        noise.garble = noise.drop = noise.lose = dice.choice((0.1, 0.4, 0.9))
        try:
            rig.light.on()
            ended[True] += 1
            assert lamp(rig) == 1.0
        except DeviceError:
            ended[False] += 1
    assert min(ended.values()) > 3


@each_light
def test_a_lost_line_is_no_error_when_switching_off(protocol):
    rig = lit(protocol)
    rig.light.on()
    rig.stage.close()
    rig.light.off()
    with pytest.raises(DeviceError):
        rig.light.on()


def test_grbl_in_laser_mode_or_before_homing_is_refused():
    with pytest.raises(DeviceError, match=r"\$32=0"):
        lit("grbl", firmware={"laser_mode": 1}).light.on()
    with pytest.raises(DeviceError):
        lit("grbl", home=False).light.on()


def test_squid_puts_the_light_off_when_the_host_is_silent():
    rig = lit("squid")
    rig.light.on()
    rig.port.run(55.0)
    assert lamp(rig) == 1.0
    rig.stage.start_move(FAR)
    rig.stage.wait()
    rig.port.run(55.0)
    assert lamp(rig) == 1.0, "any command counts"
    rig.port.run(10.0)
    assert lamp(rig) == 0.0


def test_squid_commands_of_the_light_to_the_byte():
    rig = lit("squid", "illumination.level=0.5")
    sent = len(rig.port.sent)
    rig.light.on()
    rig.light.off()
    assert [p[1:7].hex() for p in rig.port.sent[sent:-1]] == ["0d0080808000", "2800" + "00ea6000", "0a0000000000"]
    assert rig.port.sent[-1][1:7].hex() == "0b0000000000"
    assert rig.port.sent[-1][9:15].hex() == "270000000000"
    port = lit("squid", "illumination.source=12", "illumination.level=0.25")
    sent = len(port.port.sent)
    port.light.on()
    assert port.port.sent[sent][1:7].hex() == "0c0c40000000"
    assert lamp(port) == pytest.approx(0.25, abs=0.001)


def test_grbl_commands_of_the_light_to_the_byte():
    got = bytearray()
    firmware = StageRig(protocol="grbl").build(got.extend)
    firmware.boot(0.0)
    firmware.tick(2.0)
    firmware.receive(b"M3 S1000\n$X\nM3 S250\n?", 2.0)
    assert b"error:9\r\n[MSG:Caution: Unlocked]\r\nok\r\nok\r\n<Idle|" in got
    assert b"|FS:0,250|" in got
    firmware.receive(b"$J=G53 G21 G90 X-5 F100\nM5\n", 2.0)
    assert got.endswith(b"ok\r\nerror:9\r\n"), "locked during a jog"
    assert firmware.light() == 0.25
    firmware.receive(b"\x18", 2.0)
    assert firmware.light() == 0.0


@each_light
def test_a_light_of_another_controller_is_refused(protocol):
    for other in sorted(set(DRIVERS) - {protocol}):
        with pytest.raises(ConfigError, match=f"needs stage.driver {protocol}"):
            build_rig(stage_config(other, f"illumination.driver={protocol}"))


def test_a_lamp_on_gpio_says_what_is_wrong():
    pytest.importorskip("gpiod", reason="gpiod is not installed")
    named = ("illumination.driver=gpio", 'illumination.line="17"')
    with pytest.raises(ConfigError, match="line is empty"):
        build_rig(stage_config("asi", named[0]))
    with pytest.raises(ConfigError, match="on or off"):
        build_rig(stage_config("asi", *named, "illumination.level=0.5"))
    for chip in ("/dev/null", "/nowhere/gpiochip9"):
        light = build_rig(stage_config("asi", *named, f"illumination.chip={chip}")).illumination
        assert isinstance(light, gpio.GpioIllumination)
        for use in (light.off, light.on):
            with pytest.raises(DeviceError, match=f"'17' of {chip} cannot be used"):
                use()
