"""Offline fusion of tiles whose transforms are known, out of core, with Dask."""

from edge_scanner.fuse.lazy import canvas, fuse
from edge_scanner.fuse.tiles import TileFile

__all__ = ["TileFile", "canvas", "fuse"]
