"""The driver `micromanager`: any device that Micro-Manager has an adapter for, as stage, as camera, or as both.

`stage.port` or `camera.device` is a Micro-Manager configuration file (.cfg), whose core roles are taken (XY stage,
focus, camera), or names "Library/Device" separated by commas, hubs first. Where stage and camera are both from here,
they share one core: `camera.device` is then empty or the same. MICROMANAGER_PATH says where the adapters are.

Homing asks the adapter to; an axis whose adapter cannot is believed, and goes to the place that is home in its own
coordinates. A frame is a sequence of one image, so that waiting for it is bounded and holds up nobody: the emergency
stop waits at most for the call that an adapter is in. What an adapter does to its process, it does to the daemon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.mm_core import Core, CoreLine, named, told
from edge_scanner.devices.reconnect import ReconnectingCamera, check_taken
from edge_scanner.devices.serial_stage import Report, SerialStage
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import ConfigError, DeviceError, EmergencyStopError
from edge_scanner.geometry import Position
from edge_scanner.tile import Frame, Pixels

POLL_S, _HOME_POLL_S = 0.001, 0.02
HELD_FRAMES = 4
_UNSUPPORTED = "(11)"
_GAIN = "Gain"


class MicroManagerStage(SerialStage):
    """An XY stage and a focus drive of Micro-Manager, by the rules of all stages.

    Parameters
    ----------
    config : Config
        `[stage]`; `port` names the devices.
    clock : Clock
    """

    baud = 0

    def __init__(self, config: Config, clock: Clock) -> None:
        self.core = Core(config.stage.port)
        self._labels = ("", "")
        self._axes = CoreLine(self.core, clock)
        super().__init__(config, clock, self._axes)

    def _identify(self) -> str:
        mm = self.core.mm
        self._labels = mm.getXYStageDevice(), mm.getFocusDevice()
        if not all(self._labels):
            raise DeviceError(f"{self.core.source!r} has no XY stage or no focus drive.", "Name both in stage.port.")
        return ", ".join(named(mm, label) for label in self._labels)

    def _home(self) -> None:
        mm, (xy, z), stage = self.core.mm, self._labels, self._stage
        self._find(z, mm.setPosition, stage.z_home_um)
        self._find(xy, mm.setXYPosition, 1000 * stage.x_home_mm, 1000 * stage.y_home_mm)

    def _find(self, label: str, go: Callable[..., None], *home_um: float) -> None:
        """Home an axis as its adapter does it, or go there; returns when that is over."""
        with told(f"{label} cannot be homed"):
            try:
                self._axes.call(self.core.mm.home, label)
            except RuntimeError as error:
                if _UNSUPPORTED not in str(error):
                    raise
                self._axes.call(go, label, *home_um)
        deadline_s = self._clock.now_s() + self._stage.home_timeout_s
        while (report := self._query()) is None or not report.idle:
            if self._clock.now_s() > deadline_s:
                raise DeviceError(f"{label} does not find home.", "Check what blocks it, then home again.")
            self._line.sleep(_HOME_POLL_S)

    def _query(self) -> Report | None:
        if self._line.halted:
            raise EmergencyStopError("The stage was stopped.", "Reset and home it.")
        mm, (xy, z) = self.core.mm, self._labels
        try:
            moves = mm.deviceBusy(xy) or mm.deviceBusy(z)
            (x_um, y_um), z_um = mm.getXYPosition(xy), mm.getPosition(z)
        except RuntimeError:
            return None
        at = Position(x_um, y_um, z_um)
        return Report(not moves, at) if all(map(math.isfinite, (at.x_um, at.y_um, at.z_um))) else None

    def _send(self, raw: Position) -> None:
        mm, (xy, z) = self.core.mm, self._labels
        with told("The stage refuses to move"):
            self._axes.call(mm.setXYPosition, xy, raw.x_um, raw.y_um)
            self._axes.call(mm.setPosition, z, raw.z_um)

    def _halt_packet(self) -> bytes:
        return b""


class MicroManagerCamera(ReconnectingCamera):
    """A camera of Micro-Manager; 8 bits mono or RGB, or mono of 10 to 16 bits, which are shifted to fill 16.

    Memory bound: `HELD_FRAMES` frames in the core.

    Parameters
    ----------
    config : Config
        `[camera]`; `gain` is the adapter's property of that name.
    clock : Clock
    core : Core
    """

    def __init__(self, config: Config, clock: Clock, core: Core) -> None:
        super().__init__(config, clock)
        self._core = core
        self._label = ""
        self._used_bits = 8
        self._exposure_ms = 0.0

    def _connect(self) -> str:
        mm = self._core.acquire(self)
        self._label = mm.getCameraDevice()
        if not self._label:
            raise DeviceError(f"{self._core.source!r} has no camera.", "Name one in camera.device.")
        with told("The camera cannot be set up"):
            self._set_up(mm)
        return named(mm, self._label)

    def _disconnect(self, lost: bool) -> None:  # noqa: ARG002
        mm = self._core.mm
        if mm is not None and self._label:
            with suppress(RuntimeError):
                mm.stopSequenceAcquisition(self._label)
        self._core.release(self)

    def _set_up(self, mm: Any) -> None:
        """Set everything and read it back."""
        camera, label = self._camera, self._label
        for name, value in self._properties:
            mm.setProperty(label, name, value)
            check_taken(name, mm.getProperty(label, name), value)
        mm.setExposure(label, camera.exposure_ms)
        self._exposure_ms = mm.getExposure(label)
        check_taken("exposure in ms", self._exposure_ms, camera.exposure_ms, 0.05 * camera.exposure_ms)
        named_gain = any(name == _GAIN for name, _ in self._properties)
        if camera.gain != 1 and not named_gain:
            mm.setProperty(label, _GAIN, f"{camera.gain:g}")
            check_taken("gain", mm.getProperty(label, _GAIN), camera.gain)
        self._set_region(mm)
        components, bits = (3 if mm.getNumberOfComponents() == 4 else 1), mm.getImageBitDepth()
        check_taken("channels", components, camera.channels)
        check_taken("bits, rounded up,", 8 if bits <= 8 else 16, camera.bits)
        self._used_bits = bits
        frame_mb = mm.getImageBufferSize() / 1e6
        mm.setCircularBufferMemoryFootprint(math.ceil(HELD_FRAMES * frame_mb))

    def _set_region(self, mm: Any) -> None:
        """Set the middle of the sensor as the region of interest."""
        width, height = self._camera.width_px, self._camera.height_px
        mm.clearROI()
        free_x, free_y = mm.getImageWidth() - width, mm.getImageHeight() - height
        if free_x < 0 or free_y < 0:
            raise DeviceError(
                f"The camera's sensor has {free_x + width} x {free_y + height} px, not {width} x {height}.",
                "Lower camera.width_px and camera.height_px.",
            )
        if free_x or free_y:
            mm.setROI(self._label, free_x // 2, free_y // 2, width, height)
        check_taken("region", f"{mm.getImageWidth()} x {mm.getImageHeight()}", f"{width} x {height}")

    def _expose(self, frame_id: int) -> Frame:
        mm = self._core.mm
        asked_s = self._clock.now_s()
        deadline_s = asked_s + self._exposure_ms / 1000 + self._camera.timeout_s
        with told("The camera failed"):
            mm.clearCircularBuffer()
            mm.startSequenceAcquisition(self._label, 1, 0.0, True)
            while mm.getRemainingImageCount() == 0 or mm.isSequenceRunning(self._label):
                if self._clock.now_s() > deadline_s:
                    raise DeviceError("The camera gave no frame in time.", "Check its cable and power.")
                self._clock.sleep_s(POLL_S)
            return Frame(self._pixels(mm.popNextImage()), frame_id, asked_s, self._exposure_ms)

    def _pixels(self, image: Pixels) -> Pixels:
        if self._camera.channels == 3:  # blue, green, red, unused
            return np.ascontiguousarray(image.view(np.uint8).reshape(*image.shape[:2], 4)[..., 2::-1])
        return (image << (self._camera.bits - self._used_bits))[..., None]


def make_stage(config: Config, clock: Clock) -> Stage:
    """Return the XY stage and focus drive that `stage.port` names."""
    return MicroManagerStage(config, clock)


def make_camera(config: Config, clock: Clock, stage: Stage) -> Camera:
    """Return the camera that `camera.device`, or the stage's core, has.

    Raises
    ------
    ConfigError
        When stage and camera are named by different sources.
    """
    source = config.camera.device
    if not isinstance(stage, MicroManagerStage):
        return MicroManagerCamera(config, clock, Core(source))
    if source not in ("", stage.core.source):
        raise ConfigError("Stage and camera of Micro-Manager share one core.", "Make camera.device as stage.port.")
    return MicroManagerCamera(config, clock, stage.core)
