"""The driver `aravis` on Aravis' own fake GigE Vision camera, a process that somebody else wrote.

Its picture is a ramp, (x + y + n) % 255 in frame n, so that a frame with a hole, or made of two, can be told.
"""

import shutil
import socket
import subprocess
from contextlib import suppress

import numpy as np
import pytest

from edge_scanner import config as configs
from edge_scanner.devices.clock import RealClock
from edge_scanner.devices.contract import check_camera
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, DeviceError

PEER = "arv-fake-gv-camera-0.8"
HEIGHT, WIDTH = 96, 128
RAMP_MS = 10  # the exposure at which the peer's ramp is one grey level a pixel


@pytest.fixture
def peer():
    """Start fake cameras that are reached over the loopback; the last one is killed at the end."""
    if shutil.which(PEER) is None:
        pytest.skip(f"{PEER} is not here; on Debian: apt install aravis-tools")
    running = []

    def start(*options, serial="SIM001"):
        running.append(subprocess.Popen([PEER, "-i", "lo", "-s", serial, *options]))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            port.settimeout(0.05)
            for _ in range(1200):
                port.sendto(bytes.fromhex("4201000200000001"), ("127.0.0.1", 3956))  # GVCP discovery
                with suppress(OSError):
                    port.recv(1024)
                    break
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def camera(*more):
    given = ("camera.driver=aravis", "camera.device=127.0.0.1", "camera.timeout_s=8", "camera.channels=1")
    size = (f"camera.width_px={WIDTH}", f"camera.height_px={HEIGHT}", f"camera.exposure_ms={RAMP_MS}")
    dim = "camera.gain=0.001"  # dB
    try:
        return build_rig(configs.load(None, (*given, *size, dim, "sim.clock=real", *more))).camera
    except ConfigError as missing:
        if "is not here" not in str(missing):
            raise
        pytest.skip(str(missing))


def opened(*more):
    device = camera(*more)
    device.open()
    return device


def assert_whole(frame):
    ramp = frame.pixels[..., 0].astype(int)
    assert set(np.unique(np.diff(ramp, axis=0))) | set(np.unique(np.diff(ramp, axis=1))) <= {1, -254}


def test_the_contract_pixel_formats_and_what_is_set(peer):
    peer()
    for more in ((), ("camera.bits=16",), ("camera.channels=3",), ('camera.properties=["TriggerMode=Off"]',)):
        device = camera(*more)
        assert [c for c in check_camera(device, RealClock()) if not c.ok] == []
    device = camera('camera.properties=["OffsetX=64", "GainRaw=6"]', "camera.exposure_ms=12.5")
    assert device.open() == "Aravis Fake SIM001"
    region = device._device.get_region()
    middle_y = (2048 - HEIGHT) // 2
    assert (region.x, region.y, region.width, region.height) == (64, middle_y, WIDTH, HEIGHT)
    assert (device._device.get_gain(), device._device.get_exposure_time()) == (6, 12_500)
    assert device._device.get_device().get_string_feature_value("TriggerSource") == "Software"
    assert device.snap().exposure_ms == 12.5
    device.close()


def test_a_setting_that_the_camera_does_not_take_is_told(peer):
    peer()
    for wrong, says in (
        ('camera.properties=["Nope=1"]', "no feature 'Nope'"),
        ("camera.width_px=4096", "Width"),
        ("camera.exposure_ms=100000", "Exposure"),
        ("camera.gain=99", "Gain"),
        ('camera.properties=["PixelFormat=RGB8"]', "No pixel format"),
    ):
        with pytest.raises(DeviceError, match=says):
            camera(wrong).open()


def test_frames_with_missing_packets_are_taken_again(peer):
    """4 % of the packets are lost; of these frames every third lacks one."""
    peer("-r", "40")
    device = opened("camera.timeout_s=10")
    ids = []
    for _ in range(40):
        frame = device.snap()
        assert_whole(frame)
        ids.append(frame.frame_id)
    assert device._stream.get_statistics().n_missing_packets > 0
    assert ids == sorted(set(ids))
    device.close()


def test_a_camera_that_only_gives_damaged_frames_is_an_error(peer):
    peer("-r", "500")
    device = opened("camera.timeout_s=1", "camera.width_px=512", "camera.height_px=512")  # of so many packets one lacks
    with pytest.raises(DeviceError, match="no whole frame"):
        device.snap()
    device.close()


def test_a_camera_that_dies_is_an_error_and_comes_back(peer):
    first = peer()
    device = opened()
    before = device.snap()
    first.kill()
    first.wait()
    with pytest.raises(DeviceError):
        device.snap()
    peer()
    after = device.snap()
    assert_whole(after)
    assert after.frame_id > before.frame_id
    device.close()


def test_another_camera_is_not_taken_for_the_one_that_was_lost(peer):
    peer(serial="OTHER")
    device = opened()
    device._identity = "Aravis Fake SIM001"  # what was there when it was opened
    device._drop()
    with pytest.raises(DeviceError, match=r"OTHER.* instead of"):
        device.snap()


def test_a_camera_that_is_not_there_is_an_error():
    with pytest.raises(DeviceError, match="cannot be used"):
        camera("camera.device=Aravis-Fake-NONE").open()
