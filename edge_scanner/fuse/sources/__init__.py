"""What can be fused: folders and files that say where their tiles lie."""

from __future__ import annotations

from pathlib import Path

from edge_scanner.errors import SourceError
from edge_scanner.fuse.sources import fiji, ome, scan, squid, table
from edge_scanner.fuse.sources.tile_set import ScanFrame, TileSet

__all__ = ["ScanFrame", "TileSet", "open_source"]


def open_source(path: Path, pixel_size_um: float | None = None) -> TileSet:
    """Find out what a source is and read where its tiles lie.

    Parameters
    ----------
    path : Path
        A folder, or the file that lists the tiles: a scan of this project that kept its tiles, `tiles.csv`, Fiji's
        `TileConfiguration.txt`, Squid's `coordinates.csv`, `positions.csv`, or OME-TIFF with stage positions.
    pixel_size_um : float, optional
        Overrides what the source says.

    Raises
    ------
    SourceError
        Nothing known, or something that cannot be read.
    """
    if not path.exists():
        raise SourceError(f"There is no {path}.", "Check the path.")
    if path.is_file():
        return _listed(path, pixel_size_um)
    if (path / "scan.json").is_file():
        return scan.read(path)
    for name in ("tiles.csv", "TileConfiguration.registered.txt", "TileConfiguration.txt"):
        if (path / name).is_file():
            return _listed(path / name, pixel_size_um)
    if (listing := squid.find(path)) is not None:
        return squid.read(listing, pixel_size_um)
    if (path / "positions.csv").is_file():
        return table.read(path / "positions.csv", pixel_size_um)
    if stacks := sorted(p for suffix in ("*.ome.tif", "*.ome.tiff") for p in path.glob(suffix)):
        return ome.read(stacks, pixel_size_um)
    raise SourceError(
        f"The folder {path} does not say where its tiles lie.",
        "It needs tiles.csv, TileConfiguration.txt, coordinates.csv, OME-TIFF files, or a scan that kept its tiles.",
    )


def _listed(path: Path, pixel_size_um: float | None) -> TileSet:
    if path.name == "coordinates.csv":
        return squid.read(path, pixel_size_um)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return table.read(path, pixel_size_um)
    if suffix == ".txt":
        return fiji.read(path, pixel_size_um)
    if suffix in (".tif", ".tiff", ".btf"):
        return ome.read([path], pixel_size_um)
    raise SourceError(f"The file {path.name} is not a list of tiles that is known.", "Use .csv, .txt or OME-TIFF.")
