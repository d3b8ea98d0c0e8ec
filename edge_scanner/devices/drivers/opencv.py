"""The driver `opencv`: V4L2 cameras and MJPEG or RTSP streams through OpenCV.

`camera.device` is a number, a path such as /dev/v4l/by-id/…, or a URL. Such cameras run freely: a frame counts as new
when it came so long after the request that its exposure, and the read-out before it, cannot have begun earlier. The
frame period is measured when the camera is opened. The registry's OpenCV wheel has no GStreamer.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera, PixelFormat, refuse_properties
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.tile import Frame

PROBE_FRAMES = 12
PERIODS = 2
"""A frame that comes now was exposed at most that many frame periods, and the exposure, ago."""

_MANUAL_EXPOSURE = 1
_EXPOSURE_UNIT_MS = 0.1


class OpenCvCamera(Camera):
    """A free-running camera; 8 bits, mono or RGB.

    Parameters
    ----------
    config : Config
        `[camera]`; exposure and gain are set, and read back, on V4L2 devices only.
    clock : Clock
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._camera = config.camera
        self._clock = clock
        self._capture: cv2.VideoCapture | None = None
        self._period_s = 0.0
        self._frames = 0

    @property
    def pixel_format(self) -> PixelFormat:
        """Shape and depth of the frames."""
        return PixelFormat.of(self._camera)

    def open(self) -> str:
        """Connect, set, read back, and measure the frame period."""
        self.close()
        if self._camera.bits != 8:
            raise DeviceError("The opencv driver gives 8 bits.", "Set camera.bits to 8.")
        device = self._camera.device
        url = "://" in device
        wait_ms = int(1000 * self._camera.timeout_s)
        given = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait_ms] if url else []
        source: int | str = int(device) if device.isdigit() else device
        self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG if url else cv2.CAP_V4L2, given)
        try:
            if not self._capture.isOpened():
                raise DeviceError(f"The camera {device!r} cannot be opened.", "Check camera.device and its cable.")
            if not url:
                self._set_up(self._capture)
            self._period_s = self._measured_period_s(self._capture)
            self._pixels(self._capture)
        except BaseException:
            self.close()
            raise
        return f"OpenCV {self._capture.getBackendName()} {device}, {1 / self._period_s:.1f} frames/s"

    def close(self) -> None:
        """Disconnect."""
        if self._capture is not None:
            self._capture.release()
        self._capture = None

    def snap(self) -> Frame:
        """Throw frames away until one is surely new."""
        if self._capture is None:
            raise DeviceError("The camera is not open.", "Open it first.")
        asked_s, exposure_s = self._clock.now_s(), self._camera.exposure_ms / 1000
        oldest_s = exposure_s + PERIODS * self._period_s
        while True:
            self._grab(self._capture)
            came_s = self._clock.now_s()
            if came_s - oldest_s >= asked_s:
                break
        self._frames += 1
        return Frame(self._pixels(self._capture), self._frames, came_s - oldest_s, self._camera.exposure_ms)

    def _set_up(self, capture: cv2.VideoCapture) -> None:
        camera = self._camera
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL_EXPOSURE)
        for name, key, value in (
            ("width", cv2.CAP_PROP_FRAME_WIDTH, camera.width_px),
            ("height", cv2.CAP_PROP_FRAME_HEIGHT, camera.height_px),
            ("exposure", cv2.CAP_PROP_EXPOSURE, max(1, round(camera.exposure_ms / _EXPOSURE_UNIT_MS))),
            ("gain", cv2.CAP_PROP_GAIN, camera.gain),
        ):
            capture.set(key, value)
            if abs(capture.get(key) - value) > 0.01 * abs(value) + 0.5:
                raise DeviceError(f"The camera's {name} is {capture.get(key):g}, not {value:g}.", "Change [camera].")

    def _measured_period_s(self, capture: cv2.VideoCapture) -> float:
        """Return the longest wait for a frame, once what was buffered is gone."""
        waits = []
        for _ in range(PROBE_FRAMES):
            began_s = self._clock.now_s()
            self._grab(capture)
            waits.append(self._clock.now_s() - began_s)
        return max(*waits[PROBE_FRAMES // 2 :], 1e-3)

    def _grab(self, capture: cv2.VideoCapture) -> None:
        began_s = self._clock.now_s()
        if not capture.grab() or self._clock.now_s() - began_s > self._camera.timeout_s:
            raise DeviceError("The camera gave no frame in time.", "Check its cable and power.")

    def _pixels(self, capture: cv2.VideoCapture) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the grabbed frame, (y, x, c) uint8."""
        came, raw = capture.retrieve()
        camera = self._camera
        if not came or raw is None or raw.shape[:2] != (camera.height_px, camera.width_px):
            got = "nothing" if raw is None else f"{raw.shape[1]} x {raw.shape[0]} px"
            wanted = f"{camera.width_px} x {camera.height_px} px"
            raise DeviceError(f"The camera gave {got} instead of {wanted}.", "Match camera.width_px and height_px.")
        if camera.channels == 1:
            raw = cv2.cvtColor(raw, cv2.COLOR_BGR2GRAY)[..., None] if raw.ndim == 3 else raw[..., None]
        else:
            raw = cv2.cvtColor(raw, cv2.COLOR_BGR2RGB)
        return np.ascontiguousarray(raw)


def make_camera(config: Config, clock: Clock, stage: Stage) -> Camera:  # noqa: ARG001
    """Return the camera at `camera.device`."""
    refuse_properties(config.camera, "Set them beforehand, on V4L2 by v4l2-ctl.")
    return OpenCvCamera(config, clock)
