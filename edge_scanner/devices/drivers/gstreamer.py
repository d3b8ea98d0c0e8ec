"""The driver `gstreamer`: any live GStreamer pipeline, for instance a Jetson's CSI camera by nvarguscamerasrc.

`camera.device` is the pipeline from its source up to raw video in the processor's memory; the sink is put behind it.
`{exposure_ms}`, `{exposure_us}`, `{exposure_ns}`, `{gain}`, `{width_px}` and `{height_px}` in it stand for the keys of
`[camera]`, since every source sets them in its own way::

    nvarguscamerasrc wbmode=0 aelock=true exposuretimerange="{exposure_ns} {exposure_ns}" gainrange="{gain} {gain}" !
      video/x-raw(memory:NVMM),width={width_px},height={height_px} ! nvvidconv ! video/x-raw,format=BGRx

Such cameras run freely. A frame is stamped by its source when it is captured, on the monotonic clock; it counts as new
when the stamp is so long after the request that its exposure, and the read-out before it, cannot have begun earlier.
What the pipeline holds back is thereby never taken for new. The frame period is measured when the camera is opened.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera, refuse_properties
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.gobject import library
from edge_scanner.devices.reconnect import ReconnectingCamera
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.tile import Frame, Pixels

_PACKAGES = "gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good python3-gi"
Gst = library("Gst", "1.0", _PACKAGES)
library("GstApp", "1.0", _PACKAGES)  # gives the sink its methods
GLib = library("GLib", "2.0", _PACKAGES)

PROBE_FRAMES = 8
PERIODS = 1
"""A stamped frame was exposed at most that many frame periods, and the exposure, before its stamp."""

_SINK = "edge_scanner_frames"
_FORMATS = {(1, 8): "GRAY8", (1, 16): "GRAY16_LE", (3, 8): "RGB"}


class GStreamerCamera(ReconnectingCamera):
    """A freely running camera behind a pipeline; 8 bits mono or RGB, or 16 bits mono.

    Memory bound: the pipeline's own buffers and one frame.

    Parameters
    ----------
    config : Config
        `[camera]`.
    clock : Clock
        The real one: the stamps are on it.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        super().__init__(config, clock)
        self._pipeline: Any = None
        self._sink: Any = None
        self._oldest_s = 0.0

    def _connect(self) -> str:
        Gst.init(None)
        try:
            self._pipeline = Gst.parse_launch(self._description())
        except GLib.Error as error:
            raise DeviceError(f"The pipeline cannot be built ({error.message}).", "Check camera.device.") from error
        self._sink = self._pipeline.get_by_name(_SINK)
        self._pipeline.use_clock(Gst.SystemClock.obtain())  # the monotonic clock, which is the scanner's
        self._start()
        stamps_s = [self._pull()[1] for _ in range(PROBE_FRAMES)]
        period_s = float(np.diff(stamps_s)[PROBE_FRAMES // 2 :].max())
        self._oldest_s = self._camera.exposure_ms / 1000 + PERIODS * period_s
        return f"GStreamer {self._pipeline.iterate_sources().next()[1].get_factory().get_name()}"

    def _disconnect(self, lost: bool) -> None:  # noqa: ARG002
        pipeline, self._pipeline, self._sink = self._pipeline, None, None
        if pipeline is not None:
            pipeline.set_state(Gst.State.NULL)

    def _expose(self, frame_id: int) -> Frame:
        asked_s = self._clock.now_s()
        deadline_s = asked_s + self._oldest_s + self._camera.timeout_s
        while self._clock.now_s() < deadline_s:
            sample, stamp_s = self._pull()
            if stamp_s - self._oldest_s >= asked_s:
                exposure_ms = self._camera.exposure_ms
                return Frame(self._pixels(sample.get_buffer()), frame_id, stamp_s - self._oldest_s, exposure_ms)
        raise DeviceError("The camera's frames are all stamped as old ones.", "Check the source's clock and latency.")

    def _description(self) -> str:
        """Return the whole pipeline; a frame of another size or kind cannot get through it."""
        camera = self._camera
        caps = _FORMATS.get((camera.channels, camera.bits))
        if caps is None:
            raise DeviceError("The gstreamer driver gives no 16-bit colour.", "Set camera.bits or camera.channels.")
        keys = {
            "exposure_ms": f"{camera.exposure_ms:g}",
            "exposure_us": round(1e3 * camera.exposure_ms),
            "exposure_ns": round(1e6 * camera.exposure_ms),
            "gain": f"{camera.gain:g}",
            "width_px": camera.width_px,
            "height_px": camera.height_px,
        }
        source = camera.device
        for name, value in keys.items():
            source = source.replace(f"{{{name}}}", str(value))
        raw = f"video/x-raw,format={caps},width={camera.width_px},height={camera.height_px}"
        return f"{source} ! videoconvert ! {raw} ! appsink name={_SINK} drop=true max-buffers=1 sync=false"

    def _start(self) -> None:
        """Play; only a live source stamps its frames with the time at which they were captured."""
        self._pipeline.set_state(Gst.State.PAUSED)
        reached = self._pipeline.get_state(int(self._camera.timeout_s * Gst.SECOND))[0]
        if reached == Gst.StateChangeReturn.SUCCESS:
            raise DeviceError("The pipeline's source is not live.", "Name a camera in camera.device, not a file.")
        if reached != Gst.StateChangeReturn.NO_PREROLL:
            raise DeviceError(f"The pipeline does not start ({self._trouble()}).", "Check camera.device.")
        self._pipeline.set_state(Gst.State.PLAYING)

    def _pull(self) -> tuple[Any, float]:
        """Return the next sample and its stamp on the monotonic clock, seconds."""
        sample = self._sink.try_pull_sample(int(self._camera.timeout_s * Gst.SECOND))
        if sample is None:
            raise DeviceError(f"The camera gave no frame in time ({self._trouble()}).", "Check its cable and power.")
        stamp = sample.get_buffer().pts
        running = sample.get_segment().to_running_time(Gst.Format.TIME, stamp)
        if Gst.CLOCK_TIME_NONE in (stamp, running):  # that of a frame outside its segment would lie in the far future
            raise DeviceError("The pipeline's frames have no time stamps.", "Use another source in camera.device.")
        return sample, (self._pipeline.get_base_time() + running) / Gst.SECOND

    def _trouble(self) -> str:
        """Return what the pipeline says of its end."""
        message = self._pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
        if message is not None:
            return str(message.parse_error()[0].message)
        return "the stream has ended" if self._sink.is_eos() else "silence"

    def _pixels(self, buffer: Any) -> Pixels:
        """Return a copy of the frame, (y, x, c); GStreamer pads rows."""
        kind = self.pixel_format
        data = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8).reshape(kind.height_px, -1)
        row = kind.width_px * kind.channels * kind.bits // 8
        packed = np.ascontiguousarray(data[:, :row]).view(np.uint8 if kind.bits == 8 else "<u2")
        return packed.reshape(kind.height_px, kind.width_px, kind.channels)


def make_camera(config: Config, clock: Clock, stage: Stage) -> Camera:  # noqa: ARG001
    """Return the camera behind the pipeline `camera.device`."""
    refuse_properties(config.camera, "Set them in the pipeline, camera.device.")
    return GStreamerCamera(config, clock)
