"""Other processes feed positioned tiles into the same registration, mosaic, pyramid, store and export as a scan."""

from edge_scanner.push.collector import Collector, collect
from edge_scanner.push.feed import Feed

__all__ = ["Collector", "Feed", "collect"]
