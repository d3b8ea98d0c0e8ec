"""The driver `micromanager` on Micro-Manager's own demonstration devices, which others wrote.

Their "Fluorescent Beads" are seen at 1 px per um under the XY stage, sharpest at z = 0 (and as sharp 1 um off).
"""

import threading

import numpy as np
import pytest
from scan_rig import calibrated_scan, levels_of

from edge_scanner import config as configs
from edge_scanner.devices.clock import RealClock
from edge_scanner.devices.contract import check_camera, check_stage
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, DeviceError, EmergencyStopError, PositionUnknownError
from edge_scanner.geometry import Position
from edge_scanner.scanner.scan import run_nested

pymmcore = pytest.importorskip("pymmcore", reason="the extra [peers] is not installed")
pytest.importorskip("mm_test_adapters", reason="the extra [peers] is not installed")

HEIGHT, WIDTH, SENSOR = 192, 256, 512
DEVICES = "DemoCamera/DHub, DemoCamera/DCam, DemoCamera/DXYStage, DemoCamera/DStage"
BEADS = 'camera.properties=["Mode=Fluorescent Beads"]'
CONFIGURATION = """\
Property,Core,Initialize,0
Device,Hub,DemoCamera,DHub
Device,Eye,DemoCamera,DCam
Device,Plane,DemoCamera,DXYStage
Device,Drive,DemoCamera,DStage
Parent,Eye,Hub
Parent,Plane,Hub
Parent,Drive,Hub
Property,Core,Initialize,1
Property,Eye,PixelType,16bit
Property,Core,Camera,Eye
Property,Core,XYStage,Plane
Property,Core,Focus,Drive
"""


def demo_config(*more):
    devices = ("stage.driver=micromanager", f"stage.port={DEVICES}", "camera.driver=micromanager")
    frame = (f"camera.width_px={WIDTH}", f"camera.height_px={HEIGHT}", "camera.channels=1", "camera.exposure_ms=5")
    stage = ("stage.speed_mm_s=10", "stage.settle_ms=0", "stage.timeout_s=5", "stage.home_timeout_s=30")
    dark = ("illumination.driver=none", "illumination.brightfield=false", "optics.pixel_size_um=1")
    return configs.load(None, (*devices, *frame, *stage, *dark, *more))


@pytest.fixture
def demo():
    """Open stages and cameras are closed at the end."""
    rigs = []

    def build(*more):
        rigs.append(build_rig(demo_config(*more)))
        return rigs[-1]

    def opened(*more):
        rig = build(*more)
        rig.stage.open()
        rig.camera.open()
        return rig

    build.opened = opened
    yield build
    for rig in rigs:
        rig.camera.close()
        rig.stage.close()


@pytest.mark.parametrize(
    "more",
    [
        (BEADS,),
        ("camera.bits=16", 'camera.properties=["PixelType=16bit", "BitDepth=12"]'),
        ("camera.channels=3", 'camera.properties=["Mode=Color Test Pattern", "PixelType=32bitRGB"]'),
    ],
)
def test_the_contracts(demo, more):
    rig = demo(*more)
    results = check_stage(rig.stage, rig.clock) + check_camera(rig.camera, rig.clock)
    assert [c for c in results if not c.ok] == []


@pytest.mark.parametrize("bits", [8, 16])
def test_a_scan_gives_the_picture_that_the_camera_has_of_the_whole(demo, tmp_path, bits):
    beads = BEADS.replace("[", f'["PixelType={bits}bit", ')
    config = demo_config(beads, f"camera.bits={bits}", "scan.overlap=0.2", "focus.z_start_um=6", "storage.reserve_mb=0")
    scan = calibrated_scan(config, tmp_path / "scan", region=(0.0, 0.0, 0.7, 0.45))
    run_nested(scan)
    records = list(scan.records.all())
    scan.close()
    assert len(records) == 12
    for record in records:
        tile, placed = record.tile, record.placed
        assert placed.registered
        assert abs(placed.x_px - (tile.reached.x_um - WIDTH / 2)) < 0.05
        assert abs(placed.y_px - (tile.reached.y_um - HEIGHT / 2)) < 0.05
        assert abs(tile.focus.z_um) <= 1.0
        assert tile.focus.in_focus
    mosaic = levels_of(tmp_path / "scan")[0][..., 0]
    mm = scan.acquirer._rig.stage.core.mm
    mm.clearROI()
    mm.setPosition(mm.getFocusDevice(), 0)
    mm.setXYPosition(300.0, 260.0)
    mm.waitForDevice(mm.getXYStageDevice())
    mm.snapImage()
    whole = mm.getImage()
    left, top = 300 - SENSOR // 2, 260 - SENSOR // 2
    seen = whole[: mosaic.shape[0] - top, :].astype(int)
    ours = mosaic[top : top + seen.shape[0], left : left + SENSOR].astype(int)
    assert seen.std() > 15
    assert np.abs(ours - seen).max() <= 3
    scan.acquirer._rig.camera.close()
    scan.acquirer._rig.stage.close()


def test_focus_tells_which_way_the_beads_are_blurred(demo):
    rig = demo.opened(BEADS)
    rig.stage.home()
    energy = {}
    for z_um in (-8.0, -4.0, 0.0, 4.0, 8.0):
        rig.stage.start_move(Position(0.0, 0.0, z_um))
        rig.stage.wait()
        energy[z_um] = float((np.diff(rig.camera.snap().pixels.astype(float), axis=0) ** 2).mean())
    assert energy[-8] < energy[-4] < energy[0] > energy[4] > energy[8]


def test_a_configuration_file_of_micro_manager(demo, tmp_path):
    (tmp_path / "rig.cfg").write_text(CONFIGURATION)
    rig = demo(f"stage.port={tmp_path / 'rig.cfg'}", "camera.bits=16")
    assert rig.stage.open() == "Micro-Manager DemoCamera DXYStage, Micro-Manager DemoCamera DStage"
    assert rig.camera.open() == "Micro-Manager DemoCamera DCam"
    assert rig.camera.snap().pixels.dtype == np.uint16
    alone = build_rig(demo_config("stage.driver=sim", f"camera.device={tmp_path / 'rig.cfg'}", "camera.bits=16"))
    alone.camera.open()
    assert alone.camera.snap().pixels.shape == (HEIGHT, WIDTH, 1)
    alone.camera.close()


def test_twelve_bits_fill_sixteen_and_the_middle_of_the_sensor_is_read(demo):
    rig = demo.opened("camera.bits=16", 'camera.properties=["PixelType=16bit", "BitDepth=12"]')
    pixels = rig.camera.snap().pixels
    assert not (pixels & 15).any()
    assert rig.stage.core.mm.getROI() == [(SENSOR - WIDTH) // 2, (SENSOR - HEIGHT) // 2, WIDTH, HEIGHT]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("camera.bits=16", "bits, rounded up, is 8"),
        ("camera.channels=3", "channels is 1"),
        ("camera.width_px=600", "sensor has 512 x 512 px"),
        ("camera.exposure_ms=1e6", "exposure in ms is 10"),
        ("camera.gain=99", "Gain"),
        ('camera.properties=["Nope=1"]', "Nope"),
        ("stage.port=Nope/DXYStage", "Nope"),
        ("stage.port=/none.cfg", "none.cfg"),
        ("stage.port=DemoCamera/DCam", "no XY stage or no focus drive"),
        ("stage.port=DemoCamera/DXYStage,DemoCamera/DStage", "no camera"),
        ("stage.port=", "cannot be loaded"),
    ],
)
def test_what_cannot_be_had_is_told(demo, wrong, says):
    with pytest.raises(DeviceError, match=says):
        demo.opened(wrong)


def test_stage_and_camera_share_one_core():
    with pytest.raises(ConfigError, match="share one core"):
        build_rig(demo_config("camera.device=other.cfg"))


def test_homing_takes_an_axis_that_has_no_reference_to_its_own_zero(demo):
    rig = demo.opened()
    mm = rig.stage.core.mm
    mm.setPosition("DStage", 55.0)
    rig.stage.home()
    assert mm.getPosition("DStage") == 0.0
    assert rig.stage.position().z_um == 0.0


def test_stop_halts_a_move_and_bars_another(demo):
    rig = demo.opened()
    stage, mm = rig.stage, rig.stage.core.mm
    stage.home()
    far = Position(50_000.0, 0.0, 0.0)  # 5 s away
    ended = []

    def move():
        try:
            stage.start_move(far)
            stage.wait()
        except EmergencyStopError as error:
            ended.append(error)

    mover = threading.Thread(target=move)
    mover.start()
    while mm.getXYPosition()[0] < 10:
        pass
    stage.stop()
    mover.join(timeout=60)
    halted_at = mm.getXYPosition()
    assert ended
    assert halted_at[0] < 40_000
    assert stage.position() is None
    assert stage.busy()
    with pytest.raises(EmergencyStopError):
        stage.start_move(Position(0.0, 0.0, 0.0))
    assert mm.getXYPosition() == halted_at
    stage.home()
    assert stage.position() is not None


def test_devices_that_fail_are_busy_and_never_done(demo):
    rig = demo.opened()
    rig.stage.home()
    rig.stage.start_move(Position(500.0, 0.0, 0.0))
    rig.stage.core.mm.unloadAllDevices()
    assert rig.stage.busy()
    with pytest.raises(DeviceError):
        rig.stage.wait()
    with pytest.raises(PositionUnknownError):
        rig.stage.start_move(Position(0.0, 0.0, 0.0))
    with pytest.raises(DeviceError):
        rig.camera.snap()


def test_a_camera_that_takes_too_long_is_an_error_and_goes_on(demo):
    rig = demo.opened("camera.exposure_ms=300", "camera.timeout_s=0.2")
    rig.camera._exposure_ms = 1.0  # what the driver believes
    with pytest.raises(DeviceError, match="no frame in time"):
        rig.camera.snap()
    assert check_camera(demo().camera, RealClock())[0].ok
    assert rig.camera.snap().exposure_ms == 300.0
