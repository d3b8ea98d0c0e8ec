"""How a stored chunk becomes a TIFF tile: its bytes as they are, or encoded anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from edge_scanner.errors import UsageError
from edge_scanner.export.bigtiff import Compression
from edge_scanner.store.codec import Codec, Gzip, Jpeg, Uncompressed, Zstd, gzip_to_zlib
from edge_scanner.tile import Pixels

CompressionName = Literal["keep", "jpeg", "zlib", "zstd", "none"]
_TAGS = {"jpeg": Compression.JPEG, "gzip": Compression.DEFLATE, "zstd": Compression.ZSTD, "none": Compression.NONE}
_DEFAULT_QUALITY = 90


@dataclass(frozen=True, slots=True)
class TileCodec:
    """From stored chunks to tiles.

    Parameters
    ----------
    stored, codec : Codec
        What the chunks are encoded with, and the tiles.
    shape : tuple of int
        Of one tile's pixels, (T, T, 3) or (T, T).
    dtype : dtype
    copies : bool
        Tiles are the stored bytes.
    """

    stored: Codec
    codec: Codec
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    copies: bool

    @property
    def compression(self) -> Compression:
        """Value of the TIFF tag."""
        return _TAGS[self.codec.name]

    @property
    def subsampling(self) -> tuple[int, int] | None:
        """Horizontal and vertical chroma subsampling of JPEG tiles; None otherwise."""
        if not isinstance(self.codec, Jpeg):
            return None
        return {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[self.codec.subsampling]

    @property
    def unwraps(self) -> bool:
        """Whether a stored gzip chunk becomes a tile by a swap of its wrapper."""
        return isinstance(self.codec, Gzip)

    def transcode(self, chunk: bytes) -> bytes:
        """Return the tile of a stored chunk, decoded and encoded anew."""
        return self.encode(self.stored.decode(chunk, self.shape, self.dtype))

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of a tile or strip of these pixels."""
        data = self.codec.encode(pixels)
        return gzip_to_zlib(data) if self.unwraps else data


def make_tile_codec(
    stored: Codec, shape: tuple[int, ...], dtype: np.dtype[Any], compression: str, quality: int | None
) -> TileCodec:
    """Return the way from a store's chunks to tiles.

    Raises
    ------
    UsageError
        Unknown compression, zstd to be kept, JPEG of what is not 8-bit RGB, a quality without JPEG.
    """
    if compression not in get_args(CompressionName):
        raise UsageError(
            f"There is no compression {compression!r}.", f"Use one of {', '.join(get_args(CompressionName))}."
        )
    if quality is not None and (compression != "jpeg" or not 1 <= quality <= 100):
        raise UsageError("A quality is 1 to 100 and belongs to --compression jpeg.")
    if compression == "keep":
        if stored.name == "zstd":
            raise UsageError(
                "The store's zstd chunks cannot be kept: most TIFF readers refuse zstd, and some return zeros.",
                "Use --compression zlib, which is lossless too.",
            )
        return TileCodec(stored, stored, shape, dtype, copies=True)
    if compression == "jpeg" and (shape[2:] != (3,) or dtype != np.uint8):
        raise UsageError("JPEG stores 8-bit RGB only.", "Use --compression zlib for this slide.")
    codecs: dict[str, Codec] = {
        "jpeg": Jpeg(quality or _DEFAULT_QUALITY),
        "zlib": Gzip(),
        "zstd": Zstd(),
        "none": Uncompressed(),
    }
    return TileCodec(stored, codecs[compression], shape, dtype, copies=False)
