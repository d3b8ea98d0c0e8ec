"""The nouns that flow through the pipeline. All frozen; the arrays inside are made read-only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from edge_scanner.geometry import Position

Pixels = NDArray[Any]
"""(y, x, c) uint8 or uint16; c is 1 for mono and 3 for RGB."""


class Verdict(StrEnum):
    """What became of a target."""

    ACCEPTED = "accepted"
    BLANK = "blank"
    REJECTED = "rejected"


def freeze(pixels: Pixels) -> Pixels:
    """Mark an array read-only and return it."""
    pixels.flags.writeable = False
    return pixels


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera exposure.

    Parameters
    ----------
    pixels : ndarray, (y, x, c), uint8 or uint16
        Read-only.
    frame_id : int
        Camera's running number, strictly increasing.
    exposure_start_s : float
        When the exposure began, on the rig's clock.
    exposure_ms : float
        Length of the exposure.
    """

    pixels: Pixels
    frame_id: int
    exposure_start_s: float
    exposure_ms: float

    def __post_init__(self) -> None:
        freeze(self.pixels)


@dataclass(frozen=True, slots=True)
class FocusResult:
    """How a tile was focused.

    Parameters
    ----------
    score : float
        Sharpness of the kept frame (unit of the focus score; comparable within one scan only).
    z_um : float
        Stage z of the kept frame, read at rest.
    frames : int
        Exposures spent on the tile, retakes included.
    in_focus : bool
        The kept frame is within one depth of field by the method's own test.
    measured : bool
        z was measured on this tile (False: taken from the focus surface).
    dz_um, sigma_um : float or None
        Signed defocus left and its standard deviation, where the method knows them.
    """

    score: float
    z_um: float
    frames: int
    in_focus: bool
    measured: bool
    dz_um: float | None = None
    sigma_um: float | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """What acquisition says of one target.

    `pixels` is None for a rejected target: the ledger must hear of every target, or a chunk would wait for ever.

    Parameters
    ----------
    index, row, col : int
        The target's index in the plan and its place in the grid.
    position : Position
        The commanded target (x, y) and the z reached.
    reached : Position or None
        Stage position read back at rest; None when the target was not reached.
    pixels : ndarray or None
        (y, x, c), flat-fielded.
    focus : FocusResult or None
    verdict : Verdict
    attempts : int
    reason : str
        Why it was rejected; empty otherwise.
    timings_ms : mapping
        Milliseconds on the rig's clock by stage name (`move`, `settle`, `expose`, `focus`).
    truth : Position or None
        True position, where the rig knows it (simulator only).
    glass : tuple of float or None
        What clean glass told of the light, six numbers a channel; see `edge_scanner.drift`.
    """

    index: int
    row: int
    col: int
    position: Position
    reached: Position | None
    pixels: Pixels | None
    focus: FocusResult | None
    verdict: Verdict
    attempts: int = 1
    reason: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    truth: Position | None = None
    glass: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.pixels is not None:
            freeze(self.pixels)

    @property
    def skipped(self) -> bool:
        """Whether it was not even tried, since the scan was cancelled before."""
        return self.verdict is Verdict.REJECTED and self.attempts == 0

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return 0 if self.pixels is None else int(self.pixels.nbytes)


@dataclass(frozen=True, slots=True)
class PlacedTile:
    """A target's final place in the mosaic, without its pixels (the spool keeps those).

    Parameters
    ----------
    index : int
    y_px, x_px : float
        Mosaic coordinates of the tile's top-left pixel; meaningless when `verdict` is rejected.
    verdict : Verdict
    registered : bool
        True when image content placed it, False when only the stage model did.
    residual_px : float or None
        RMS residual of its accepted pairs after the solve.
    gain : float
        Factor that makes it as bright as its neighbours.
    """

    index: int
    y_px: float
    x_px: float
    verdict: Verdict
    registered: bool = False
    residual_px: float | None = None
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One finished chunk of one level; `pixels` is None where nothing was scanned.

    Parameters
    ----------
    level, row, col : int
        Place in the pyramid; level 0 is full resolution.
    pixels : ndarray or None
        (y, x, c), chunk-sized except at the canvas edge, where it is clipped to the canvas.
    stored : bool
        It is in the store already (a resumed scan); `pixels` is None then.
    """

    level: int
    row: int
    col: int
    pixels: Pixels | None
    stored: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        """(level, row, col)."""
        return self.level, self.row, self.col

    def __post_init__(self) -> None:
        if self.pixels is not None:
            freeze(self.pixels)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return 0 if self.pixels is None else int(self.pixels.nbytes)
