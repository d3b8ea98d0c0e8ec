"""A Squid acquisition: `coordinates.csv` with stage millimetres, and one image a field and channel.

The layout is that of Cephla's Squid software: `<time>/coordinates.csv` with `region,fov,z_level,x (mm),y (mm)` and
files `region_fov_z_channel.tiff`; older ones have `i,j,k` and `i_j_k_channel.bmp`.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from edge_scanner.errors import SourceError
from edge_scanner.fuse.sources.tile_set import TileSet, inside, number, read_text, shifted_um
from edge_scanner.fuse.tiles import TileFile

_KEYS = (("region", "fov", "z_level"), ("i", "j", "k"))
_SUFFIXES = (".tiff", ".tif", ".bmp", ".png", ".jpg")


def find(folder: Path) -> Path | None:
    """Return the listing of an acquisition's first point in time, or None."""
    for path in (folder / "0" / "coordinates.csv", folder / "coordinates.csv"):
        if path.is_file():
            return path
    return None


def read(path: Path, pixel_size_um: float | None) -> TileSet:
    """Read one point in time: all channels, the middle z level.

    Raises
    ------
    SourceError
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    keys = next((k for k in _KEYS if {*k, "x (mm)", "y (mm)"} <= {*reader.fieldnames}), None)
    if keys is None:
        raise SourceError(
            f"{path.name} has the columns {', '.join(reader.fieldnames)}.",
            "Squid's has region,fov,z_level,x (mm),y (mm).",
        )
    rows = list(reader)
    levels = sorted({int(number(row, keys[2], path.name)) for row in rows})
    if not levels:
        raise SourceError(f"{path.name} lists no tiles.")
    middle = levels[len(levels) // 2]
    size = pixel_size_um or _pixel_size_um(path)
    tiles, transforms = [], []
    for row in rows:
        if int(number(row, keys[2], path.name)) == middle:
            prefix = "_".join((row[key] or "").strip() for key in keys)
            tiles.append(TileFile(prefix, _channels(path.parent, prefix)))
            x_um, y_um = (1000.0 * number(row, axis, path.name) for axis in ("x (mm)", "y (mm)"))
            transforms.append(shifted_um(x_um, y_um, size, path))
    return TileSet(tuple(tiles), tuple(transforms), size, path)


def _channels(folder: Path, prefix: str) -> tuple[tuple[str, int], ...]:
    inside(folder, prefix)
    found = sorted(p for p in folder.iterdir() if p.name.startswith(prefix + "_") and p.suffix.lower() in _SUFFIXES)
    if not found:
        raise SourceError(f"The tile {prefix} is missing.", f"No image of that name lies in {folder}.")
    return tuple((str(p), 0) for p in found)


def _pixel_size_um(path: Path) -> float | None:
    """Return the pixel on the specimen, by the camera's pixel, the objective and the tube lens."""
    for folder in (path.parent, path.parent.parent):
        settings = folder / "acquisition parameters.json"
        if settings.is_file():
            try:
                told: dict[str, Any] = json.loads(read_text(settings))
                objective = told["objective"]
                design_mm = float(objective.get("tube_lens_f_mm", told.get("tube_lens_mm", 180)))
                lens_mm = float(told.get("tube_lens_mm", design_mm))
                return float(told["sensor_pixel_size_um"]) / (float(objective["magnification"]) * lens_mm / design_mm)
            except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
                return None
    return None
