"""OME-Zarr store: sharded, grown by append, readable at any moment of the scan."""

from edge_scanner.store.codec import Codec, make_codec
from edge_scanner.store.growth import EncodedChunk, StoredPart
from edge_scanner.store.layout import Level
from edge_scanner.store.metadata import Channel, SlideMetadata
from edge_scanner.store.slide_store import SlideStore

create = SlideStore.create
open = SlideStore.open

__all__ = [
    "Channel",
    "Codec",
    "EncodedChunk",
    "Level",
    "SlideMetadata",
    "SlideStore",
    "StoredPart",
    "create",
    "make_codec",
    "open",
]
