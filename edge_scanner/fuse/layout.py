"""What a person looks at beside the slide: where the tiles lie, as a drawing and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from edge_scanner.errors import UsageError
from edge_scanner.fuse.fusion import Fusion
from edge_scanner.fuse.sources import TileSet
from edge_scanner.fuse.transforms import Matrix

_SIDE = 1000.0
_COLUMNS = ["file", "x_px", "y_px"]
_GROUP = '<g fill="#2a6f97" fill-opacity="0.15" '


def layout_svg(fusion: Fusion, names: Sequence[str], matrices: Sequence[Matrix]) -> str:
    """Return a drawing of the canvas with every tile's outline; tiles are named by their tooltips."""
    (height, width), (top, left), (tile_height, tile_width) = fusion.extent, fusion.start, fusion.tile_sides
    corners = np.array([[x, y, 1.0] for y, x in product((-0.5, tile_height - 0.5), (-0.5, tile_width - 0.5))])
    scale = _SIDE / max(height, width)
    stroke = max(height, width) / _SIDE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * scale:.0f}" height="{height * scale:.0f}" '
        f'viewBox="{left - 0.5} {top - 0.5} {width} {height}">',
        f'<rect x="{left - 0.5}" y="{top - 0.5}" width="{width}" height="{height}" fill="#f4f4f4"/>',
        f'{_GROUP}stroke="#012a4a" stroke-width="{stroke:.3g}">',
    ]
    for name, matrix in zip(names, matrices, strict=True):
        at = corners[[0, 1, 3, 2]] @ matrix.T
        points = " ".join(f"{x / w:.2f},{y / w:.2f}" for x, y, w in at)
        lines.append(f'<polygon points="{points}"><title>{escape(name)}</title></polygon>')
    return "\n".join([*lines, "</g>", "</svg>", ""])


def positions_csv(tiles: TileSet) -> str:
    """Return `file,x_px,y_px` lines: where each tile's top-left pixel lies in the mosaic."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for tile, matrix in zip(tiles.tiles, tiles.transforms, strict=True):
        x, y, w = matrix[:, 2]
        writer.writerow([tile.name, f"{x / w:.4f}", f"{y / w:.4f}"])
    return text.getvalue()


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a `positions.csv` or `layout.svg` of somebody else.

    Raises
    ------
    UsageError
        One of them does not look like those that a fusion writes.
    """
    for name, sign in (("positions.csv", ",".join(_COLUMNS)), ("layout.svg", _GROUP)):
        path = folder / name
        if path.is_dir() or (path.is_file() and sign.encode() not in path.read_bytes()[:1000]):
            raise UsageError(
                f"{path} was not written by a fusion, and would be replaced.", "Write the output to another folder."
            )


def replace_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
