"""Tiles and where they lie: what every source becomes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_scanner.errors import SourceError
from edge_scanner.fuse.tiles import TileFile
from edge_scanner.fuse.transforms import Matrix
from edge_scanner.geometry import Box, MosaicFrame
from edge_scanner.mosaic.kernel import Blend
from edge_scanner.store import Codec, SlideMetadata


@dataclass(frozen=True, slots=True)
class ScanFrame:
    """What a scan of this project fixes beyond the places of its tiles, so that fusing gives its mosaic again.

    Parameters
    ----------
    canvas : Box
    reach : tuple of Box
        What of the mosaic each tile may be used for.
    fill : int
    feather_px : int
    cubic : bool
    blend : str
    doubts_px : tuple of float
        How far each tile may be from agreeing with its neighbours.
    chunk_px : int
    codec : Codec
    metadata : SlideMetadata
    """

    canvas: Box
    reach: tuple[Box, ...]
    fill: int
    feather_px: int
    cubic: bool
    blend: Blend
    doubts_px: tuple[float, ...]
    chunk_px: int
    codec: Codec
    metadata: SlideMetadata


@dataclass(frozen=True, slots=True)
class TileSet:
    """Tiles with their transforms.

    Parameters
    ----------
    tiles : tuple of TileFile
    transforms : tuple of ndarray
        3 x 3 on (x, y, 1), tile to mosaic pixels.
    pixel_size_um : float or None
        Where it is known.
    listing : Path
        The file or folder that told.
    scan : ScanFrame, optional
        Only for a scan of this project.
    gains : tuple of float, optional
        Factors that make the tiles as bright as their neighbours.
    """

    tiles: tuple[TileFile, ...]
    transforms: tuple[Matrix, ...]
    pixel_size_um: float | None
    listing: Path
    scan: ScanFrame | None = None
    gains: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.tiles:
            raise SourceError(f"{self.listing.name} lists no tiles.")
        if self.pixel_size_um is not None and not (self.pixel_size_um > 0 and math.isfinite(self.pixel_size_um)):
            raise SourceError(f"The pixel size is {self.pixel_size_um} um.", "Give a positive number.")


def shifted(x_px: float, y_px: float) -> Matrix:
    """Return the transform of a tile whose top-left pixel lies at a mosaic point."""
    return np.array([[1.0, 0.0, x_px], [0.0, 1.0, y_px], [0.0, 0.0, 1.0]])


def shifted_um(x_um: float, y_um: float, pixel_size_um: float | None, listing: Path) -> Matrix:
    """Return the transform of a tile whose place is given in micrometres."""
    if pixel_size_um is None:
        raise SourceError(f"{listing.name} gives micrometres and no pixel size.", "Give --pixel-size-um.")
    y_px, x_px = MosaicFrame.aligned(0.0, 0.0, 1, 1, pixel_size_um).to_px(x_um, y_um)
    return shifted(x_px, y_px)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a listed file, which must lie in the folder.

    Raises
    ------
    SourceError
        For a name that leads elsewhere.
    """
    plain = os.path.normpath(name.replace("\\", "/"))
    if not name or "\0" in name or Path(plain).is_absolute() or plain.split("/")[0] == "..":
        raise SourceError(f"The file name {name!r} leads out of its folder.", "List files of the folder only.")
    return folder / plain


def number(row: Mapping[str, str | None], key: str, where: str) -> float:
    """Return a finite number of a row.

    Raises
    ------
    SourceError
    """
    text = (row.get(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(f"{where}: {key} is {text!r}, not a finite number.")
    return value


def read_text(path: Path) -> str:
    """Return a listing's text.

    Raises
    ------
    SourceError
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path.name} cannot be read ({error}).") from error
