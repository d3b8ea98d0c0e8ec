"""`tiles.csv`: a header that says what the numbers are, then a line a tile."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_scanner.errors import SourceError
from edge_scanner.fuse.sources.tile_set import TileSet, inside, number, read_text, shifted, shifted_um
from edge_scanner.fuse.tiles import TileFile
from edge_scanner.fuse.transforms import Matrix

_PIXELS = ("x_px", "y_px")
_MICROMETRES = ("x_um", "y_um")
_AFFINE = ("a", "b", "tx", "c", "d", "ty")
_PERSPECTIVE = tuple(f"h{row}{col}" for row in "123" for col in "123")


def read(path: Path, pixel_size_um: float | None) -> TileSet:
    """Read a table: `file` and places in px or um, or an affine or perspective matrix; other columns are passed over.

    Raises
    ------
    SourceError
        Not such a table, a number that is none, a file name that leads out of the folder.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    kind = next(
        (k for k in (_PERSPECTIVE, _AFFINE, _PIXELS, _MICROMETRES) if {"file", *k} <= {*reader.fieldnames}), None
    )
    if kind is None:
        raise SourceError(
            f"{path.name} has the columns {', '.join(reader.fieldnames) or 'none'}.",
            "It needs file and x_px,y_px or x_um,y_um or a,b,tx,c,d,ty or h11 to h33.",
        )
    tiles, transforms = [], []
    try:
        for line, row in enumerate(reader, 2):
            name = (row["file"] or "").strip()
            tiles.append(TileFile(name, ((str(inside(path.parent, name)), 0),)))
            transforms.append(_matrix(row, kind, f"{path.name} line {line}", pixel_size_um, path))
    except csv.Error as error:
        raise SourceError(f"{path.name} is not a table ({error}).") from error
    return TileSet(tuple(tiles), tuple(transforms), pixel_size_um, path)


def _matrix(
    row: Mapping[str, str | None], kind: tuple[str, ...], where: str, pixel_size_um: float | None, path: Path
) -> Matrix:
    values = [number(row, key, where) for key in kind]
    if kind is _PIXELS:
        return shifted(*values)
    if kind is _MICROMETRES:
        return shifted_um(values[0], values[1], pixel_size_um, path)
    return np.array([*values, 0.0, 0.0, 1.0][:9]).reshape(3, 3)
