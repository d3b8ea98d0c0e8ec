"""What the store looks like on disk: levels, names of shards and the JSON of OME-Zarr 0.5 (Zarr v3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_scanner.errors import StoreError
from edge_scanner.store.codec import Codec, from_zarr
from edge_scanner.store.metadata import SlideMetadata

OME_VERSION = "0.5"
OWN_KEY = "edge_scanner"
"""Attribute of the image group that holds `SlideMetadata`."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the pyramid.

    Parameters
    ----------
    height_px, width_px : int
    downsample : int
        Level-0 pixels per pixel, along each axis.
    rows, cols : int
        Chunks.
    """

    height_px: int
    width_px: int
    downsample: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of a store; fixed when it is created.

    Parameters
    ----------
    height_px, width_px, channels : int
    dtype : numpy.dtype
        uint8 or uint16.
    chunk_px, shard_chunks : int
        Side of a chunk in pixels, of a shard in chunks.
    fill_value : int
        Pixel value of what is not stored.
    codec : Codec
    metadata : SlideMetadata
        With one channel for three samples, pixels are RGB and interleaved; else one chunk a channel.
    level_count : int or None
        None: until one chunk holds a level.
    """

    height_px: int
    width_px: int
    channels: int
    dtype: np.dtype[Any]
    chunk_px: int
    shard_chunks: int
    fill_value: int
    codec: Codec
    metadata: SlideMetadata
    level_count: int | None = None

    def __post_init__(self) -> None:
        count = 1 if self.level_count is None else self.level_count
        if min(self.height_px, self.width_px, self.channels, self.chunk_px, self.shard_chunks, count) < 1:
            raise StoreError(f"A slide of {self.width_px} x {self.height_px} px x {self.channels} cannot be stored.")
        if self.dtype not in (np.uint8, np.uint16):
            raise StoreError(f"Pixels of type {self.dtype} cannot be stored.", "Use uint8 or uint16.")
        if not 0 <= self.fill_value <= np.iinfo(self.dtype).max:
            raise StoreError(f"The fill value {self.fill_value} is not a {self.dtype}.")
        if not self.rgb and len(self.metadata.channels) != self.channels:
            raise StoreError(
                f"{self.channels} samples a pixel but {len(self.metadata.channels)} channels are described."
            )
        if self.codec.name == "jpeg" and not (self.rgb and self.dtype == np.uint8):
            raise StoreError("JPEG stores 8-bit RGB only.", "Use the gzip codec for these pixels.")

    @property
    def rgb(self) -> bool:
        """Whether a chunk holds three interleaved samples a pixel."""
        return self.channels == 3 and len(self.metadata.channels) == 1

    @property
    def planes(self) -> int:
        """Encoded parts of a chunk: 1 for RGB, else one a channel."""
        return 1 if self.rgb else self.channels

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one encoded part, (T, T, 3) or (T, T)."""
        return (self.chunk_px, self.chunk_px, 3) if self.rgb else (self.chunk_px, self.chunk_px)

    @property
    def slots(self) -> int:
        """Index entries of a shard."""
        return self.planes * self.shard_chunks**2

    def levels(self) -> tuple[Level, ...]:
        """Return the levels, largest first; each halves the one before, rounded up."""
        return tuple(itertools.islice(self._halvings(), self.level_count))

    def _halvings(self) -> Iterator[Level]:
        height, width, downsample = self.height_px, self.width_px, 1
        while True:
            rows, cols = math.ceil(height / self.chunk_px), math.ceil(width / self.chunk_px)
            yield Level(height, width, downsample, rows, cols)
            if self.level_count is None and rows == cols == 1:
                return
            height, width, downsample = (height + 1) // 2, (width + 1) // 2, downsample * 2

    def shard_of(self, level: int, row: int, col: int) -> str:
        """Return the shard's path relative to the store."""
        return f"0/{level}/c/0/{row // self.shard_chunks}/{col // self.shard_chunks}"

    def slot_of(self, row: int, col: int, channel: int) -> int:
        """Return the place of a part in its shard's index."""
        n = self.shard_chunks
        return (channel * n + row % n) * n + col % n

    def chunk_at(self, shard: str, slot: int) -> tuple[int, int, int, int]:
        """Return (level, row, col, channel) of an index entry; the inverse of `shard_of` and `slot_of`."""
        _, level, _, _, shard_row, shard_col = shard.split("/")
        n = self.shard_chunks
        channel, place = divmod(slot, n * n)
        return int(level), int(shard_row) * n + place // n, int(shard_col) * n + place % n, channel


def documents(layout: Layout) -> dict[str, dict[str, Any]]:
    """Return every `zarr.json` by its folder relative to the store, `""` the root.

    The root repeats the image's multiscales, because readers that do not know `bioformats2raw.layout` (ome-zarr-py
    among them) find no image there otherwise.
    """
    ome = {"version": OME_VERSION}
    omero = _omero(layout)
    image = {
        "ome": {**ome, "multiscales": [_multiscale(layout, "")], "omero": omero},
        OWN_KEY: {"metadata": layout.metadata.to_dict()},
    }
    root = {**ome, "bioformats2raw.layout": 3, "multiscales": [_multiscale(layout, "0/")], "omero": omero}
    groups = {
        "": {"ome": root},
        "OME": {"ome": {**ome, "series": ["0"]}},
        "0": image,
    }
    found = {k: {"zarr_format": 3, "node_type": "group", "attributes": v} for k, v in groups.items()}
    return found | {f"0/{k}": _array(layout, level) for k, level in enumerate(layout.levels())}


def parse(image: dict[str, Any], array: dict[str, Any]) -> Layout:
    """Read the layout from the documents of the image group and of level 0.

    Raises
    ------
    StoreError
        When they are not as `documents` writes them.
    """
    try:
        shape = array["shape"]
        sharding = array["codecs"][0]["configuration"]
        chunk_px = int(sharding["chunk_shape"][2])
        layout = Layout(
            int(shape[1]),
            int(shape[2]),
            int(shape[0]),
            np.dtype(array["data_type"]),
            chunk_px,
            int(array["chunk_grid"]["configuration"]["chunk_shape"][2]) // chunk_px,
            int(array["fill_value"]),
            from_zarr(sharding["codecs"]),
            SlideMetadata.from_dict(image["attributes"][OWN_KEY]["metadata"]),
        )
        stored = len(image["attributes"]["ome"]["multiscales"][0]["datasets"])
        return layout if stored == len(layout.levels()) else replace(layout, level_count=stored)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise StoreError(
            f"This OME-Zarr has another structure than this program's ({error!r}).", "Only its own stores can be used."
        ) from error


def same_array(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether two array documents describe the same pixels in the same chunks."""
    keys = (
        "zarr_format",
        "node_type",
        "shape",
        "data_type",
        "chunk_grid",
        "chunk_key_encoding",
        "fill_value",
        "codecs",
    )
    return all(a.get(k) == b.get(k) for k in keys)


def _array(layout: Layout, level: Level) -> dict[str, Any]:
    t, s = layout.chunk_px, layout.chunk_px * layout.shard_chunks
    order = [{"name": "transpose", "configuration": {"order": [1, 2, 0]}}] if layout.rgb else []
    sharding = {
        "chunk_shape": [3 if layout.rgb else 1, t, t],
        "codecs": order + layout.codec.zarr_codecs(),
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "start",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [layout.channels, level.height_px, level.width_px],
        "data_type": layout.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.channels, s, s]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": layout.fill_value,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["c", "y", "x"],
    }


def _multiscale(layout: Layout, folder: str) -> dict[str, Any]:
    return {
        "name": layout.metadata.name,
        "type": "mean",
        "axes": [
            {"name": "c", "type": "channel"},
            {"name": "y", "type": "space", "unit": "micrometer"},
            {"name": "x", "type": "space", "unit": "micrometer"},
        ],
        "datasets": [
            {"path": f"{folder}{k}", "coordinateTransformations": _placed(layout.metadata, level.downsample)}
            for k, level in enumerate(layout.levels())
        ],
    }


def _placed(metadata: SlideMetadata, downsample: int) -> list[dict[str, Any]]:
    """Scale, then translation: a 2x2 mean moves the first pixel's centre by half a pixel of the level above."""
    shift = (downsample - 1) / 2 * metadata.pixel_size_um
    scale = metadata.pixel_size_um * downsample
    return [
        {"type": "scale", "scale": [1.0, scale, scale]},
        {"type": "translation", "translation": [0.0, metadata.origin_y_um + shift, metadata.origin_x_um + shift]},
    ]


def _omero(layout: Layout) -> dict[str, Any]:
    top = int(np.iinfo(layout.dtype).max)
    named = [(c.name, c.colour) for c in layout.metadata.channels]
    if layout.rgb:
        named = [("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF")]
    window = {"min": 0, "max": top, "start": 0, "end": top}
    return {
        "channels": [{"label": label, "color": colour, "active": True, "window": window} for label, colour in named],
        "rdefs": {"model": "color"},
    }
