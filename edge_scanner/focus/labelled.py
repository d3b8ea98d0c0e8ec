"""Frames whose defocus is known: a folder of images, z from a table or from the file names."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_scanner.errors import SourceError
from edge_scanner.tile import Pixels, freeze

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
_Z_IN_NAME = re.compile(r"z_?([+-]?\d+(?:\.\d+)?)\s*um", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """A frame of known defocus.

    Parameters
    ----------
    slide : str
        Where it comes from; errors are told slide by slide.
    pixels : ndarray, (y, x, c), uint8 or uint16
        Read-only.
    z_um : float
        Defocus, positive where the stage is above focus.
    blank : bool
        The place holds too little to focus on even in focus.
    """

    slide: str
    pixels: Pixels
    z_um: float
    blank: bool = False

    def __post_init__(self) -> None:
        freeze(self.pixels)


def read_image(path: Path) -> Pixels:
    """Return an image file as (y, x, c), c of 1 or 3, uint8 or uint16.

    Raises
    ------
    SourceError
        Missing, truncated, no image, or of another type.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise SourceError(f"The image {path} cannot be read ({error.strerror}).", "Check the path.") from error
    try:
        raw = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except cv2.error:
        raw = None
    if raw is None or raw.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{path} is not an image of 8 or 16 bits.", "Give PNG, TIFF or JPEG files.")
    return np.ascontiguousarray(raw[..., ::-1]) if raw.ndim == 3 else raw[..., None]


def labelled_frames(folder: Path) -> Iterator[LabelledFrame]:
    """Yield the frames of a folder and of the folders in it, each folder a slide.

    z stands in `positions.csv` (columns `file` and `z_offset_um` or `z_um`) or in the file name (`z-03.50um.png`).

    Raises
    ------
    SourceError
        No folder, no labelled image in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise SourceError(f"There is no folder {folder}.", "Give a folder of labelled images.")
    found = 0
    for place in [folder, *sorted(p for p in folder.rglob("*") if p.is_dir())]:
        for path, z_um in _labels(place):
            found += 1
            yield LabelledFrame(place.name, read_image(path), z_um)
    if not found:
        raise SourceError(
            f"No image below {folder} tells its z.", "Name files like z-03.50um.png, or add positions.csv."
        )


def _labels(folder: Path) -> list[tuple[Path, float]]:
    table = folder / "positions.csv"
    if table.exists():
        return _table(table)
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    named = ((path, _Z_IN_NAME.search(path.stem + path.suffix)) for path in images)
    return [(path, float(match[1])) for path, match in named if match]


def _table(table: Path) -> list[tuple[Path, float]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        labels = [(str(row["file"]), float(row.get("z_offset_um") or row["z_um"])) for row in rows]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise SourceError(f"{table} cannot be read ({error}).", "It needs the columns file and z_offset_um.") from error
    for name, z_um in labels:
        if Path(name).name != name or not np.isfinite(z_um):
            raise SourceError(f"{table} names {name!r} at z {z_um}.", "Name files of that folder, and finite z.")
    return [(table.parent / name, z_um) for name, z_um in labels]
