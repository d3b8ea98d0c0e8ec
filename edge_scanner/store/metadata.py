"""What a slide's files say about how it was made: one value, written to OME-Zarr and to OME-TIFF alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of the image; brightfield RGB is a single channel with three samples a pixel."""

    name: str
    colour: str = "FFFFFF"
    exposure_ms: float | None = None
    emission_nm: float | None = None


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """How a slide was acquired. Holds no personal data: no names, labels, host names or absolute paths.

    Parameters
    ----------
    name : str
        Scan id.
    pixel_size_um : float
        Physical size of a level-0 pixel, both axes.
    channels : tuple of Channel
        One for RGB, else one for each sample.
    acquired : str
        ISO 8601 UTC, `2026-01-31T12:00:00Z`; empty when unknown.
    origin_x_um, origin_y_um, z_um : float
        Stage position of the mosaic's top-left corner, and mean focus.
    magnification, numerical_aperture : float or None
    immersion : str
        `air`, `water` or `oil`.
    software : str
    settings : mapping of str to str
        Scan settings; StructuredAnnotations in OME-XML.
    """

    name: str
    pixel_size_um: float
    channels: tuple[Channel, ...]
    acquired: str = ""
    origin_x_um: float = 0.0
    origin_y_um: float = 0.0
    z_um: float = 0.0
    magnification: float | None = None
    numerical_aperture: float | None = None
    immersion: str = "air"
    software: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SlideMetadata:
        """Read what `to_dict` gave."""
        channels = tuple(Channel(**c) for c in raw["channels"])
        return cls(**{**raw, "channels": channels})
