"""The camera contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from edge_scanner.config import CameraConfig
from edge_scanner.errors import ConfigError
from edge_scanner.tile import Frame


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Shape and depth of a camera's frames.

    Parameters
    ----------
    height_px, width_px : int
    channels : int
        1 (mono) or 3 (RGB).
    bits : int
        8 or 16; frames are uint8 or uint16.
    """

    height_px: int
    width_px: int
    channels: int
    bits: int

    @classmethod
    def of(cls, camera: CameraConfig) -> PixelFormat:
        """Return what `[camera]` asks for."""
        return cls(camera.height_px, camera.width_px, camera.channels, camera.bits)


class Camera(ABC):
    """A camera that is triggered frame by frame; driven by one thread."""

    @property
    @abstractmethod
    def pixel_format(self) -> PixelFormat:
        """Shape and depth of the frames; fixed while open."""

    @abstractmethod
    def open(self) -> str:
        """Connect, apply the settings, read them back, and return the device's identity.

        Raises
        ------
        DeviceError
            When the device is not there or does not take a setting.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect; safe to call twice."""

    @abstractmethod
    def snap(self) -> Frame:
        """Expose and return a frame whose exposure began after the call; blocks for exposure and read-out.

        Raises
        ------
        DeviceError
            When no complete frame comes in time.
        """


def refuse_properties(camera: CameraConfig, advice: str) -> None:
    """Refuse `camera.properties` for a driver that can set none: a key that does nothing misleads.

    Raises
    ------
    ConfigError
    """
    if camera.properties:
        raise ConfigError(f"The driver {camera.driver!r} can set no camera.properties.", advice)
