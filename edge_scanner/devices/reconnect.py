"""Cameras whose line may break: after a failure the connection is made anew, and must lead to the same camera."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator
from itertools import count

from edge_scanner.config import Config
from edge_scanner.devices.camera import Camera, PixelFormat
from edge_scanner.devices.clock import Clock
from edge_scanner.errors import DeviceError
from edge_scanner.tile import Frame

_log = logging.getLogger(__name__)

RETRY_S = 0.25


class ReconnectingCamera(Camera):
    """A camera that is connected anew before the first frame after a failure.

    Such a frame waits up to `camera.timeout_s` for the camera to come back. A driver adds how to connect, disconnect
    and expose.

    Parameters
    ----------
    config : Config
        `[camera]`.
    clock : Clock
        A real one.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._camera = config.camera
        self._clock = clock
        self._properties = [(name.strip(), value.strip()) for name, value in _pairs(config)]
        self._identity = ""
        self._connected = False
        self._numbers = count(1)

    @abstractmethod
    def _connect(self) -> str:
        """Connect, set, read back, and return the identity; `_disconnect` follows where this raises."""

    @abstractmethod
    def _disconnect(self, lost: bool) -> None:
        """Let go of whatever `_connect` got hold of, in any state; `lost`: it will not answer."""

    @abstractmethod
    def _expose(self, frame_id: int) -> Frame:
        """Return a frame whose exposure began after the call; DeviceError when none came in time."""

    @property
    def pixel_format(self) -> PixelFormat:
        """Shape and depth of the frames."""
        return PixelFormat.of(self._camera)

    def open(self) -> str:
        """Connect, set and read back."""
        self.close()
        self._identity = self._connection()
        return self._identity

    def close(self) -> None:
        """Disconnect."""
        self._identity = ""
        self._drop(lost=not self._connected)

    def snap(self) -> Frame:
        """Expose, on a new connection where the last frame failed."""
        if not self._identity:
            raise DeviceError("The camera is not open.", "Open it first.")
        if not self._connected:
            self._reconnect()
        try:
            return self._expose(next(self._numbers))
        except BaseException as error:
            _log.warning("The camera is connected anew before the next frame: %s", error)
            self._drop()
            raise

    def _connection(self) -> str:
        try:
            identity = self._connect()
        except BaseException:
            self._drop()
            raise
        self._connected = True
        return identity

    def _reconnect(self) -> None:
        deadline_s = self._clock.now_s() + self._camera.timeout_s
        while not self._connected:
            try:
                identity = self._connection()
            except DeviceError:
                if self._clock.now_s() > deadline_s:
                    raise
                self._clock.sleep_s(RETRY_S)
        if identity != self._identity:
            self._drop()
            raise DeviceError(
                f"There is now {identity!r} instead of {self._identity!r}.", "Check the cables, or restart."
            )
        _log.info("The camera is back: %s", identity)

    def _drop(self, lost: bool = True) -> None:
        self._connected = False
        self._disconnect(lost)


def _pairs(config: Config) -> Iterator[tuple[str, str]]:
    for text in config.camera.properties:
        name, _, value = text.partition("=")
        yield name, value


def check_taken(name: str, got: str | float, wanted: str | float, slack: float = 0.0) -> None:
    """Compare a setting that was read back with what was asked for.

    Parameters
    ----------
    name : str
    got, wanted : str or float
        Numbers, also as text, may differ by 1 %, or by the slack; other text must be the same.
    slack : float
        Cameras round to what their clock and amplifier can do.

    Raises
    ------
    DeviceError
        When the device did not take it.
    """
    try:
        taken = math.isclose(float(got), float(wanted), rel_tol=0.01, abs_tol=slack)
    except ValueError:
        taken = str(got).strip() == str(wanted).strip()
    if not taken:
        raise DeviceError(f"The camera's {name} is {got}, not {wanted}.", "Change [camera] to what it can do.")
