"""The driver `opencv` on an MJPEG stream whose frames tell when they were made."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from edge_scanner import config as configs
from edge_scanner.devices.clock import RealClock
from edge_scanner.devices.contract import check_camera
from edge_scanner.devices.drivers.opencv import OpenCvCamera
from edge_scanner.devices.rig import build_rig
from edge_scanner.errors import ConfigError, DeviceError

PERIOD_S = 0.03
HEIGHT, WIDTH = 96, 128


class Stream(BaseHTTPRequestHandler):
    """Frames of one grey level each; `made` remembers when a level was last made."""

    made: dict[int, float] = {}  # noqa: RUF012
    on = threading.Event()
    more = threading.Semaphore(0)

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cut")
        self.end_headers()
        level = 0
        while self.on.is_set():
            level = (level + 4) % 252
            self.made[level] = time.monotonic()
            picture = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
            picture[: HEIGHT // 2, :, 2] = 255  # red above, in OpenCV's order
            jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
            head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return
            self.more.release()
            self.server.pace.wait(PERIOD_S)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    server.daemon_threads = True
    server.pace = threading.Event()
    Stream.on.set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/stream.mjpg"
    Stream.on.clear()
    server.shutdown()
    server.server_close()


def camera(url, *more):
    given = (f'camera.device="{url}"', f"camera.width_px={WIDTH}", f"camera.height_px={HEIGHT}", "camera.timeout_s=20")
    return OpenCvCamera(configs.load(None, (*given, *more)), RealClock())


def test_the_contract_and_that_frames_are_new(url):
    device = camera(url)
    assert [c for c in check_camera(device, RealClock()) if not c.ok] == []
    device.open()
    for _ in range(5):
        Stream.more = threading.Semaphore(0)
        for _ in range(4):
            assert Stream.more.acquire(timeout=60)  # frames pile up meanwhile
        asked_s = time.monotonic()
        frame = device.snap()
        level = int(np.median(frame.pixels[-8:]))
        nearest = min(Stream.made, key=lambda known: abs(known - level))
        assert Stream.made[nearest] >= asked_s
    assert frame.pixels[4, 4, 0] > 200 > frame.pixels[4, 4, 2] or level > 190
    device.close()


def test_the_wrong_size_and_the_wrong_depth_are_refused(url):
    with pytest.raises(DeviceError, match=f"{WIDTH} x {HEIGHT} px instead of {2 * WIDTH}"):
        camera(url, f"camera.width_px={2 * WIDTH}").open()
    with pytest.raises(DeviceError, match="8 bits"):
        camera(url, "camera.bits=16").open()
    mono = camera(url, "camera.channels=1")
    mono.open()
    assert mono.snap().pixels.shape == (HEIGHT, WIDTH, 1)
    mono.close()


def test_a_stream_that_ends_is_an_error(url):
    device = camera(url)
    device.open()
    device.snap()
    Stream.on.clear()
    with pytest.raises(DeviceError):
        for _ in range(50):
            device.snap()
    device.close()


@pytest.mark.parametrize("device", ["/dev/video-none", "http://127.0.0.1:9/none", "97"])
def test_a_camera_that_is_not_there_is_an_error(device):
    with pytest.raises(DeviceError, match="cannot be opened"):
        camera(device).open()


@pytest.mark.parametrize("driver", ["opencv", "remote"])
def test_properties_that_nobody_would_set_are_refused(driver):
    given = (f"camera.driver={driver}", "camera.device=ipc:///nowhere", 'camera.properties=["BalanceRatio=1.4"]')
    with pytest.raises(ConfigError, match="can set no"):
        build_rig(configs.load(None, given))
    build_rig(configs.load(None, given[:2]))
