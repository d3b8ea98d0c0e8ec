"""Positioned tiles in, finished chunks out: geometric weights, one gather kernel, and the ledger that says when."""

from edge_scanner.mosaic.mosaic import Mosaic

__all__ = ["Mosaic"]
