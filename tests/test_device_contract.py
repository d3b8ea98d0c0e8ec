"""The contract passes for the simulator on both clocks and fails for broken devices; the rig builds what is named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_scanner.config import Config, load
from edge_scanner.devices.clock import RealClock, VirtualClock
from edge_scanner.devices.contract import CheckResult, check_camera, check_illumination, check_stage
from edge_scanner.devices.drivers.sim import LitStage, SimCamera
from edge_scanner.devices.illumination import NoIllumination
from edge_scanner.devices.rig import build_rig, known_drivers
from edge_scanner.errors import ConfigError, DeviceError, LimitsError
from edge_scanner.geometry import Position
from edge_scanner.tile import Frame

SMALL = ("camera.width_px=96", "camera.height_px=80", "sim.tissue_width_mm=0.2", "sim.tissue_height_mm=0.2")


def small(*overrides: str) -> Config:
    return load(None, (*SMALL, *overrides))


def failed(results: list[CheckResult]) -> set[str]:
    return {r.name for r in results if not r.ok}


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("camera", [("3", "8"), ("1", "16")])
def test_the_simulator_keeps_the_contract(clock: str, camera: tuple[str, str]) -> None:
    fast = ("stage.speed_mm_s=400", "stage.acceleration_mm_s2=20000")
    config = small(f"sim.clock={clock}", f"camera.channels={camera[0]}", f"camera.bits={camera[1]}", *fast)
    rig = build_rig(config)
    assert isinstance(rig.clock, VirtualClock if clock == "virtual" else RealClock)
    results = check_stage(rig.stage, rig.clock) + check_camera(rig.camera, rig.clock)
    results += check_illumination(rig.illumination)
    assert not failed(results), results


class Reckless(LitStage):
    """Moves wherever it is told, homed or not."""

    def start_move(self, target: Position) -> None:
        if all(map(math.isfinite, (target.x_um, target.y_um, target.z_um))):
            self._known = True
            self._halted.clear()
            self._limits = load(None, ["stage.x_max_mm=999", "stage.y_min_mm=-99", "stage.z_max_um=999"]).stage.limits
        super().start_move(target)

    @property
    def limits(self):  # type: ignore[no-untyped-def]
        return load(None).stage.limits


class Forgetful(LitStage):
    """Is always idle, stays where it is and claims to know it after a stop."""

    def start_move(self, target: Position) -> None:
        if not self._limits.contains(target):
            raise LimitsError("no")

    def position(self) -> Position:
        return Position(0, 0, 0)

    def busy(self) -> bool:
        return False


class Dead(LitStage):
    """Answers nothing."""

    def open(self) -> str:
        raise DeviceError("no answer")


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (
            Reckless,
            {
                "motion refused before homing",
                "move beyond the limits refused, nothing moved",
                "motion refused after stop",
            },
        ),
        (
            Forgetful,
            {
                "closed stage counts as busy",
                "position unknown before homing",
                "busy during a move, idle after it",
                "move ends within tolerance",
                "stop makes the position unknown",
                "motion refused after stop",
            },
        ),
        (Dead, {"opens and tells its identity", "homing makes the position known"}),
    ],
)
def test_broken_stages_are_caught(broken: type[LitStage], caught: set[str]) -> None:
    clock = VirtualClock()
    assert caught <= failed(check_stage(broken(small(), clock), clock))


class StaleCamera(SimCamera):
    """Hands out the frame that it took before, in a buffer that it writes again."""

    _buffer: np.ndarray | None = None

    def snap(self) -> Frame:
        fresh = super().snap()
        if self._buffer is None:
            self._buffer = np.zeros((*fresh.pixels.shape[:2], 1), np.uint8)
        self._buffer.flags.writeable = True
        self._buffer[:] += 1
        return Frame(self._buffer, 7, fresh.exposure_start_s - 1, 5000.0)


def test_a_broken_camera_is_caught() -> None:
    config = small()
    clock = VirtualClock()
    results = check_camera(StaleCamera(config, clock, LitStage(config, clock)), clock)
    assert failed(results) == {
        "frames have the announced shape and type",
        "frame ids strictly increase",
        "exposure begins after the call",
        "exposure ends before the frame comes",
        "frames are read-only and keep their pixels",
    }


def test_light_off_is_dark_and_frames_are_pure() -> None:
    frames = []
    for order in ((0, 1), (1, 0)):
        rig = build_rig(small("sim.stage_error_um=0.7", "sim.backlash_um=2"))
        for device in (rig.stage, rig.camera):
            device.open()
        rig.stage.home()
        assert rig.camera.snap().pixels.mean() < 1, "the lamp is off at first"
        rig.illumination.on()
        taken = {}
        for k in order:
            for lead in (50, 0):
                rig.stage.start_move(Position(60 + 20 * k - lead, 70 - lead, 1.0))
                rig.stage.wait()
            taken[k] = rig.camera.snap().pixels
        frames.append(taken)
        rig.illumination.off()
        assert rig.camera.snap().pixels.mean() < 1
    assert all(np.array_equal(frames[0][k], frames[1][k]) for k in (0, 1))


def test_an_exposure_during_a_move_is_smeared() -> None:
    rig = build_rig(small("sim.noise=false", "camera.exposure_ms=4"))
    for device in (rig.stage, rig.camera):
        device.open()
    rig.illumination.on()
    rig.stage.home()
    rig.stage.start_move(Position(100, 100, 0))
    rig.stage.wait()
    sharp = rig.camera.snap().pixels.astype(float)
    rig.stage.start_move(Position(200, 100, 0))
    rig.clock.sleep_s(0.002)
    smeared = rig.camera.snap().pixels.astype(float)
    assert np.diff(smeared, axis=1).var() < 0.7 * np.diff(sharp, axis=1).var()


def test_unknown_drivers_name_the_nearest_known_one() -> None:
    assert {"sim", "none"} <= set(known_drivers())
    with pytest.raises(ConfigError, match="nearest known driver is 'sim'"):
        build_rig(small("stage.driver=simm"))
    for hostile in ("../sim", "os.path", "", "__init__"):
        with pytest.raises(ConfigError):
            build_rig(small(f'camera.driver="{hostile}"'))


def test_a_driver_is_asked_only_for_what_it_makes() -> None:
    with pytest.raises(ConfigError, match="makes no stage"):
        build_rig(small("stage.driver=none"))
    assert isinstance(build_rig(small("illumination.driver=none")).illumination, NoIllumination)
