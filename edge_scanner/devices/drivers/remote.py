"""The driver `remote`: a camera behind a ZeroMQ socket, frame by frame and without loss.

`camera.device` is the endpoint of a REP or ROUTER socket. Requests are one JSON frame; a reply repeats the `id`.

=============================================  ======================================================
`{"v":1,"id":n,"cmd":"hello"}`                 `{v,id,identity,height_px,width_px,channels,bits}`
`{"v":1,"id":n,"cmd":"snap",                   two frames: `{v,id,frame_id,exposure_ms,age_s,crc32}`
"exposure_ms":…,"gain":…}`                     and the pixels, (y, x, c) uint8 or little-endian uint16
=============================================  ======================================================

`frame_id` strictly increases. `age_s` is the time from the start of the exposure to the sending of the reply, so that
the two clocks need not agree; `crc32` is that of the pixels. A reply to a request that was given up is thrown away.
"""

from __future__ import annotations

import json
import zlib
from itertools import count
from typing import Any

import numpy as np
import zmq

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera, PixelFormat, refuse_properties
from edge_scanner.devices.clock import Clock
from edge_scanner.devices.stage import Stage
from edge_scanner.errors import DeviceError
from edge_scanner.tile import Frame

VERSION = 1


class RemoteCamera(Camera):
    """A camera that another process, or another machine, holds.

    Parameters
    ----------
    config : Config
        `[camera]`; `timeout_s` bounds the wait for a reply beyond the exposure.
    clock : Clock
        A real one.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._camera = config.camera
        self._clock = clock
        self._context: zmq.Context[Any] | None = None
        self._socket: zmq.Socket[Any] | None = None
        self._numbers = count(1)

    @property
    def pixel_format(self) -> PixelFormat:
        """Shape and depth of the frames."""
        return PixelFormat.of(self._camera)

    def open(self) -> str:
        """Connect and compare what the camera is with what is configured."""
        self.close()
        self._context = zmq.Context()
        try:
            self._connect()
            hello = self._request("hello", 0.0)[0]
            told = PixelFormat(*(hello[key] for key in ("height_px", "width_px", "channels", "bits")))
            if told != self.pixel_format:
                raise DeviceError(f"The remote camera gives {told}, not {self.pixel_format}.", "Match [camera] to it.")
            return str(hello["identity"])
        except KeyError as error:
            raise DeviceError(f"The remote camera's greeting lacks {error}.", "Check camera.device.") from error
        except zmq.ZMQError as error:
            raise DeviceError(f"camera.device {self._camera.device!r} cannot be used ({error}).") from error

    def close(self) -> None:
        """Disconnect."""
        if self._context is not None:
            self._context.destroy(linger=0)
        self._context = self._socket = None

    def snap(self) -> Frame:
        """Ask for an exposure and wait for it."""
        asked_s = self._clock.now_s()
        wanted_ms = self._camera.exposure_ms
        parts = self._request("snap", wanted_ms / 1000, exposure_ms=wanted_ms, gain=self._camera.gain)
        came_s = self._clock.now_s()
        try:
            header, data = parts
            began_s = came_s - float(header["age_s"])
            frame_id, exposure_ms, crc = int(header["frame_id"]), float(header["exposure_ms"]), int(header["crc32"])
        except (KeyError, TypeError, ValueError) as error:
            raise DeviceError(f"The remote camera's reply cannot be read ({error!r}).", "Check its version.") from error
        kind = self.pixel_format
        shape = (kind.height_px, kind.width_px, kind.channels)
        if zlib.crc32(data) != crc or len(data) != np.prod(shape) * kind.bits // 8:
            raise DeviceError(f"Frame {frame_id} came damaged.", "Check the network; the tile is taken again.")
        if not began_s >= asked_s:
            raise DeviceError(f"Frame {frame_id} was exposed before it was asked for.", "Check the camera.")
        pixels = np.frombuffer(data, np.uint8 if kind.bits == 8 else "<u2").reshape(shape)
        return Frame(pixels, frame_id, began_s, exposure_ms)

    def _connect(self) -> None:
        """Make a fresh connection: what was asked on an old one is forgotten."""
        if self._context is None:
            raise DeviceError("The remote camera is not open.", "Open it first.")
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(self._camera.device)

    def _request(self, cmd: str, lasts_s: float, **fields: object) -> list[Any]:
        """Return the reply: its header parsed, then what follows it."""
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        number = next(self._numbers)
        self._socket.send_multipart([b"", json.dumps({"v": VERSION, "id": number, "cmd": cmd, **fields}).encode()])
        deadline_s = self._clock.now_s() + lasts_s + self._camera.timeout_s
        while (left_s := deadline_s - self._clock.now_s()) > 0 and self._socket.poll(int(left_s * 1000) + 1):
            _, head, *rest = self._socket.recv_multipart()
            try:
                header = json.loads(head)
            except ValueError as error:
                raise DeviceError("The remote camera's reply is not JSON.", "Check camera.device.") from error
            if isinstance(header, dict) and header.get("id") == number:
                return [header, *rest]
        self._connect()
        raise DeviceError(f"The remote camera did not answer {cmd} in time.", "Check that it runs, and camera.device.")


def make_camera(config: Config, clock: Clock, stage: Stage) -> Camera:  # noqa: ARG001
    """Return the camera behind `camera.device`."""
    refuse_properties(config.camera, "Set them where the camera is.")
    return RemoteCamera(config, clock)
