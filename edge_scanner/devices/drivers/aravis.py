"""The driver `aravis`: GenICam cameras, GigE Vision and USB3 Vision, through Aravis 0.8.

`camera.device` is the camera's id as `arv-tool-0.8` lists it, its IP address, or empty for the first that is found.
The camera is triggered frame by frame by software where it can be; otherwise, or where `camera.properties` name
TriggerMode, it runs freely, and a frame counts as new when it came so long after the request that its exposure cannot
have begun earlier.
A frame with missing packets is taken again. Automatic exposure, gain and white balance are switched off first;
`camera.properties` then set what else is needed, for instance "BalanceRatioSelector=Red", "BalanceRatio=1.4".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.gobject import library
from edge_scanner.devices.reconnect import ReconnectingCamera, check_taken
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.tile import Frame, Pixels

_PACKAGES = "gir1.2-aravis-0.8 python3-gi"
Aravis = library("Aravis", "0.8", _PACKAGES)
GLib = library("GLib", "2.0", _PACKAGES)

BUFFERS = 3
PROBE_S = 1.0
"""How long after connecting the first frame may take, beyond its exposure."""

PERIODS = 2
"""A freely running frame that comes now was exposed at most that many frame periods, and the exposure, ago."""

_AUTOMATIC = ("ExposureAuto", "GainAuto", "BalanceWhiteAuto")
_GAIN_STEP = 0.5


@dataclass(frozen=True, slots=True)
class _Format:
    """What a GenICam pixel format means: channels and bits of our frames, used bits, OpenCV's conversion to RGB."""

    channels: int
    bits: int
    used_bits: int
    conversion: int | None = None


_FORMATS = {
    "Mono8": _Format(1, 8, 8),
    "Mono16": _Format(1, 16, 16),
    "Mono14": _Format(1, 16, 14),
    "Mono12": _Format(1, 16, 12),
    "Mono10": _Format(1, 16, 10),
    "RGB8": _Format(3, 8, 8),
    "BGR8": _Format(3, 8, 8, cv2.COLOR_BGR2RGB),
    "BayerRG8": _Format(3, 8, 8, cv2.COLOR_BayerRGGB2RGB),
    "BayerGB8": _Format(3, 8, 8, cv2.COLOR_BayerGBRG2RGB),
    "BayerGR8": _Format(3, 8, 8, cv2.COLOR_BayerGRBG2RGB),
    "BayerBG8": _Format(3, 8, 8, cv2.COLOR_BayerBGGR2RGB),
}
"""Best first."""


class AravisCamera(ReconnectingCamera):
    """A GenICam camera; 8 bits mono or RGB, or mono of 10 to 16 bits, which are shifted to fill 16.

    Memory bound: `BUFFERS` frames.

    Parameters
    ----------
    config : Config
        `[camera]`; `gain` is in the camera's own unit, mostly dB.
    clock : Clock
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        super().__init__(config, clock)
        self._device: Any = None
        self._stream: Any = None
        self._lost: tuple[Any, Any] | None = None
        self._format = _FORMATS["Mono8"]
        self._exposure_s = self._oldest_s = 0.0
        self._triggered = False

    def _connect(self) -> str:
        name = self._camera.device
        with _told(f"The camera {name!r} cannot be used"):
            if self._identity:
                self._await_return(name)
            self._device = device = Aravis.Camera.new(name or None)
            self._set_up(device)
            self._stream = device.create_stream(None, None)
            for _ in range(BUFFERS):
                self._stream.push_buffer(Aravis.Buffer.new_allocate(device.get_payload()))
            device.start_acquisition()
            if self._next(self._clock.now_s() + self._exposure_s + 2 * self._oldest_s + PROBE_S) is None:
                raise DeviceError(f"The camera {name!r} gives no frames.", "Check the network: port, firewall, MTU.")
            words = device.get_vendor_name(), device.get_model_name(), device.get_device_serial_number()
        return " ".join(word or "?" for word in words)

    def _disconnect(self, lost: bool) -> None:
        if not lost:
            with suppress(GLib.Error):
                self._device.stop_acquisition()
        elif self._identity:
            self._lost = self._lost or (self._device, self._stream)
        else:
            self._lost = None
        self._device = self._stream = None

    def _await_return(self, name: str) -> None:
        """Raise until a lost camera is there again; only then let go of it, or Aravis tries that for 10 s."""
        Aravis.update_device_list()
        there = range(Aravis.get_n_devices())
        if not any(name in ("", Aravis.get_device_id(n), Aravis.get_device_address(n)) for n in there):
            raise DeviceError(f"The camera {name!r} is not there.", "Check its cable and power.")
        self._lost = None

    def _expose(self, frame_id: int) -> Frame:
        deadline_s = self._clock.now_s() + self._exposure_s + self._camera.timeout_s
        spoilt = 0
        with _told("The camera failed"):
            while (taken := self._next(deadline_s)) is not None:
                buffer, began_s = taken
                try:
                    if buffer.get_status() == Aravis.BufferStatus.SUCCESS:
                        return Frame(self._pixels(buffer.get_data()), frame_id, began_s, 1000 * self._exposure_s)
                    spoilt += 1
                finally:
                    self._stream.push_buffer(buffer)
        damaged = f" ({spoilt} had missing packets)" if spoilt else ""
        raise DeviceError(f"The camera gave no whole frame in time{damaged}.", "Check its cable, power and network.")

    def _next(self, deadline_s: float) -> tuple[Any, float] | None:
        """Return a buffer exposed from now on, whole or not, and when that began; None when none came in time."""
        while (old := self._stream.try_pop_buffer()) is not None:
            self._stream.push_buffer(old)
        asked_s = self._clock.now_s()
        if self._triggered:
            self._device.software_trigger()
        while (left_s := deadline_s - self._clock.now_s()) > 0:
            buffer = self._stream.timeout_pop_buffer(int(1e6 * left_s))
            began_s = asked_s if self._triggered else self._clock.now_s() - self._oldest_s
            if buffer is None or began_s >= asked_s:
                return None if buffer is None else (buffer, began_s)
            self._stream.push_buffer(buffer)
        return None

    def _pixels(self, data: bytes) -> Pixels:
        kind, camera = self._format, self._camera
        planes = 3 if kind.channels == 3 and not _is_bayer(kind) else 1
        shape = (camera.height_px, camera.width_px, planes)
        dtype = np.dtype(np.uint8 if kind.bits == 8 else "<u2")
        if len(data) < np.prod(shape) * dtype.itemsize:
            raise DeviceError(f"The camera gave {len(data)} bytes, too few for a frame.", "Check its pixel format.")
        pixels: Pixels = np.frombuffer(data, dtype, int(np.prod(shape))).reshape(shape)
        if kind.used_bits < kind.bits:
            pixels = pixels << (kind.bits - kind.used_bits)
        return pixels if kind.conversion is None else cv2.cvtColor(pixels, kind.conversion)

    def _set_up(self, device: Any) -> None:
        """Set everything and read it back."""
        named = dict(self._properties)
        features = device.get_device()
        features.set_range_check_policy(Aravis.RangeCheckPolicy.ENABLE)
        features.set_access_check_policy(Aravis.AccessCheckPolicy.ENABLE)
        for name in _AUTOMATIC:
            if device.is_feature_available(name):
                _set(features, name, "Off")
        self._choose_format(device, named.get("PixelFormat"))
        self._set_region(device)
        self._set_exposure(device)
        device.set_acquisition_mode(Aravis.AcquisitionMode.CONTINUOUS)
        self._triggered = "TriggerMode" not in named and device.is_software_trigger_supported()
        if self._triggered:
            device.set_trigger("Software")
            check_taken("TriggerMode", features.get_string_feature_value("TriggerMode"), "On")
            check_taken("TriggerSource", features.get_string_feature_value("TriggerSource"), "Software")
        for name, value in self._properties:
            _set(features, name, value)
        if not self._triggered:
            if not device.is_frame_rate_available():
                raise DeviceError("The camera has neither a software trigger nor a frame rate.", "Use another driver.")
            self._oldest_s = self._exposure_s + PERIODS / device.get_frame_rate()

    def _choose_format(self, device: Any, named: str | None) -> None:
        """Take the first format that gives the frames that are configured, or the one that is named."""
        offered = [named] if named else list(device.dup_available_pixel_formats_as_strings())
        wanted = self._camera.channels, self._camera.bits
        fitting = [name for name, kind in _FORMATS.items() if name in offered and (kind.channels, kind.bits) == wanted]
        if not fitting:
            raise DeviceError(
                f"No pixel format of the camera gives {wanted[0]} channels of {wanted[1]} bits: {', '.join(offered)}.",
                "Change camera.channels and camera.bits.",
            )
        device.set_pixel_format_from_string(fitting[0])
        check_taken("pixel format", device.get_pixel_format_as_string(), fitting[0])
        self._format = _FORMATS[fitting[0]]

    def _set_region(self, device: Any) -> None:
        """Set the middle of the sensor as the region of interest."""
        width, height = self._camera.width_px, self._camera.height_px
        sensor_width, sensor_height = device.get_sensor_size()
        left = (sensor_width - width) // 2 // device.get_x_offset_increment() * device.get_x_offset_increment()
        top = (sensor_height - height) // 2 // device.get_y_offset_increment() * device.get_y_offset_increment()
        device.set_region(max(left, 0), max(top, 0), width, height)
        region = device.get_region()
        check_taken("region", f"{region.width} x {region.height}", f"{width} x {height}")

    def _set_exposure(self, device: Any) -> None:
        wanted_us = 1000 * self._camera.exposure_ms
        device.set_exposure_time(wanted_us)
        exposure_us = device.get_exposure_time()
        check_taken("exposure in us", exposure_us, wanted_us, 0.05 * wanted_us)
        self._exposure_s = exposure_us / 1e6
        if device.is_gain_available():
            device.set_gain(self._camera.gain)
            check_taken("gain", device.get_gain(), self._camera.gain, _GAIN_STEP)


def _is_bayer(kind: _Format) -> bool:
    return kind.conversion not in (None, cv2.COLOR_BGR2RGB)


def _set(features: Any, name: str, value: str) -> None:
    """Set a feature of whatever type by its text, and read it back."""
    node = features.get_feature(name)
    if node is None:
        raise DeviceError(f"The camera has no feature {name!r}.", "Change camera.properties; arv-tool-0.8 lists them.")
    node.set_value_from_string(value)
    check_taken(name, node.get_value_as_string(), value)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn Aravis' errors into ours."""
    try:
        yield
    except GLib.Error as error:
        raise DeviceError(
            f"{what} ({error.message}).", "Check camera.device, its cable, power and settings."
        ) from error


def make_camera(config: Config, clock: Clock, stage: Stage) -> Camera:  # noqa: ARG001
    """Return the camera with the id `camera.device`."""
    return AravisCamera(config, clock)
