"""The driver `gstreamer` on videotestsrc, a live source that somebody else wrote."""

import numpy as np
import pytest

from edge_scanner import config as configs
from edge_scanner.devices.clock import RealClock
from edge_scanner.devices.contract import check_camera
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, DeviceError

HEIGHT, WIDTH = 72, 101  # rows of RGB and of mono are padded
TEST = "videotestsrc name=scene is-live=true pattern=white ! video/x-raw,framerate=50/1"


def camera(device, *more):
    given = ("camera.driver=gstreamer", f"camera.device={device}", "camera.timeout_s=20", "camera.exposure_ms=1")
    size = (f"camera.width_px={WIDTH}", f"camera.height_px={HEIGHT}")
    try:
        return build_rig(configs.load(None, (*given, *size, "sim.clock=real", *more))).camera
    except ConfigError as missing:
        if "is not here" not in str(missing):
            raise
        pytest.skip(str(missing))


@pytest.mark.parametrize(("channels", "bits"), [(3, 8), (1, 8), (1, 16)])
def test_the_contract_and_the_pixels(channels, bits):
    device = camera(
        TEST.replace("white", "smpte100 ! videoconvert"), f"camera.channels={channels}", f"camera.bits={bits}"
    )
    assert [c for c in check_camera(device, RealClock()) if not c.ok] == []
    assert device.open() == "GStreamer videotestsrc"
    pixels = device.snap().pixels
    device.close()
    assert pixels.shape == (HEIGHT, WIDTH, channels)
    assert (pixels[:20] == pixels[0]).all(), "bars are upright, whatever GStreamer pads rows with"
    bars = pixels[4, WIDTH // 14 :: WIDTH // 7 + 1].astype(float) / (255 if bits == 8 else 65535)
    if channels == 3:
        wanted = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
        assert np.abs(bars - wanted).max() < 0.03
    else:
        assert (np.diff(bars[:, 0]) < 0).all()
        assert bars[0] > 0.9 > 0.2 > bars[-1]


def test_what_the_pipeline_holds_back_is_never_taken_for_new():
    """The scene changes; ten frames of the old one are still under way."""
    device = camera(f"{TEST} ! queue min-threshold-time=200000000 max-size-buffers=0", "camera.channels=1")
    device.open()
    assert device.snap().pixels.min() > 200
    for pattern, dark in (("black", True), ("white", False), ("black", True)):
        device._pipeline.get_by_name("scene").set_property("pattern", pattern)
        assert (device.snap().pixels.max() < 60) == dark
    device.close()


def test_frames_that_are_never_new_are_an_error():
    device = camera(TEST, "camera.channels=1", "camera.timeout_s=1")
    device.open()
    device._pipeline.set_base_time(device._pipeline.get_base_time() - 60_000_000_000)  # a clock a minute behind
    with pytest.raises(DeviceError, match="stamped as old"):
        device.snap()
    device._camera = camera(TEST, "camera.channels=1")._camera  # what must come now may take longer
    assert device.snap().pixels.min() > 200, "connected anew"
    device.close()


def test_keys_of_the_configuration_stand_in_the_pipeline():
    keys = "camera.exposure_ms=2.5", "camera.gain=3"
    device = camera("f {exposure_ns} {exposure_us} {exposure_ms} {gain} {width_px}x{height_px} {else}", *keys)
    assert device._description().startswith(f"f 2500000 2500 2.5 3 {WIDTH}x{HEIGHT} {{else}} ! videoconvert")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("videotestsrc pattern=white", "not live"),
        ("nosuchsrc", "cannot be built"),
        ("videotestsrc is-live=true nosuch=1", "cannot be built"),
        (f"{TEST},width=64,height=64", "cannot be built"),
        ("filesrc location=/none ! decodebin", "Resource not found"),
        ("videotestsrc is-live=true num-buffers=3", "the stream has ended"),
    ],
)
def test_a_pipeline_that_cannot_work_is_told(device, says):
    with pytest.raises(DeviceError, match=says):
        camera(device).open()


def test_a_camera_that_ends_is_an_error_and_is_connected_anew():
    device = camera(TEST.replace("white", "white num-buffers=60"))
    device.open()
    for _ in range(3):
        with pytest.raises(DeviceError, match="the stream has ended"):
            for _ in range(60):
                device.snap()
    device._camera = camera(TEST)._camera  # which goes on
    assert device.snap().frame_id > 3
    device.close()
    with pytest.raises(DeviceError, match="not open"):
        device.snap()


def test_sixteen_bit_colour_is_refused():
    with pytest.raises(DeviceError, match="16-bit colour"):
        camera(TEST, "camera.bits=16").open()


def test_properties_that_nobody_would_set_are_refused():
    with pytest.raises(ConfigError, match="can set no"):
        camera(TEST, 'camera.properties=["BalanceRatio=1.4"]')
