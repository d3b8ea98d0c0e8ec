"""Fiji's `TileConfiguration.txt`, and the registered one that its stitching writes."""

from __future__ import annotations

import re
from pathlib import Path

from edge_scanner.errors import SourceError
from edge_scanner.fuse.sources.tile_set import TileSet, inside, number, read_text, shifted
from edge_scanner.fuse.tiles import TileFile

_LINE = re.compile(r"(?P<file>[^;]+);(?P<series>[^;]*);\s*\((?P<place>[^)]*)\)\s*")


def read(path: Path, pixel_size_um: float | None) -> TileSet:
    """Read `file; ; (x, y)` lines, pixels; a third coordinate is passed over.

    Raises
    ------
    SourceError
    """
    tiles, transforms = [], []
    for count, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.split("#")[0].strip()
        if not line or line.partition("=")[0].strip() in ("dim", "multiseries"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise SourceError(f"{path.name} line {count} is {line!r}.", "It should be: file; ; (x, y)")
        x, y = ([*found["place"].split(","), "", ""])[:2]
        name, series = found["file"].strip(), found["series"].strip()
        place = {"x": x, "y": y}
        where = f"{path.name} line {count}"
        transforms.append(shifted(number(place, "x", where), number(place, "y", where)))
        tiles.append(TileFile(name, ((str(inside(path.parent, name)), int(series) if series.isdigit() else 0),)))
    return TileSet(tuple(tiles), tuple(transforms), pixel_size_um, path)
