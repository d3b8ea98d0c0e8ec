"""Codecs whose bytes are a Zarr chunk and, but for a swapped wrapper, a TIFF tile."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import imagecodecs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_scanner.config import Config
from edge_scanner.errors import StoreError
from edge_scanner.tile import Pixels

_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}

_GZIP_HEAD = struct.Struct("<4sIBBH2sH")
"""RFC 1952: magic, method and flags; mtime; extra flags; system; extra length; one sub-field's id and length."""
_GZIP_FIXED = (b"\x1f\x8b\x08\x04", 0, 0, 255, 8, b"A2", 4)
GZIP_START = _GZIP_HEAD.size + 4
"""Where the deflate stream of a gzip chunk begins."""
_ZLIB_HEAD = b"\x78\x01"
_JPEG_END = b"\xff\xd9"


class Codec(Protocol):
    """What turns the pixels of one chunk into bytes and back. A frozen value, safe to share between threads."""

    name: ClassVar[str]

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of C-contiguous pixels, (y, x, c) or (y, x), uint8 or uint16."""

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
        """Return the pixels; StoreError unless the bytes are whole and give exactly `shape` of `dtype`."""

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the Zarr v3 codecs from an interleaved array to these bytes."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Baseline JFIF JPEG of 8-bit RGB, stored as YCbCr.

    Parameters
    ----------
    quality : int
        1 to 100.
    subsampling : str
        Chroma: `444`, `422` or `420`.
    """

    name: ClassVar[str] = "jpeg"
    quality: int = 90
    subsampling: str = "422"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100 or self.subsampling not in ("444", "422", "420"):
            raise StoreError(
                f"There is no JPEG of quality {self.quality} and subsampling {self.subsampling}.",
                "Use a quality of 1 to 100 and 444, 422 or 420.",
            )

    def encode(self, pixels: Pixels) -> bytes:
        """Return one self-contained JPEG stream of (y, x, 3) uint8."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise StoreError(f"JPEG cannot store {pixels.dtype} of shape {pixels.shape}.", "Use gzip for these pixels.")
        return bytes(imagecodecs.jpeg8_encode(pixels, self.quality, subsampling=self.subsampling))

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
        """Return (y, x, 3) uint8.

        libjpeg fills the rest of a cut stream with grey and says nothing, so the end marker is asked for.
        """
        if data[-2:] != _JPEG_END:
            raise StoreError("A JPEG chunk is cut off.", "The store is damaged there.")
        pixels: Pixels = _decoded(imagecodecs.jpeg8_decode, data)
        if pixels.shape != tuple(shape) or pixels.dtype != dtype:
            raise _wrong_size(pixels.nbytes, shape, dtype)
        return pixels

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the draft codec `jpeg`; zarr-python reads it through `zarr_jpeg.py`."""
        return [{"name": "jpeg", "configuration": {"quality": self.quality, "subsampling": self.subsampling}}]


@dataclass(frozen=True, slots=True)
class Gzip:
    """Deflate by libdeflate in a gzip wrapper that also keeps the Adler-32 that a zlib wrapper needs.

    Parameters
    ----------
    level : int
        0 to 12, libdeflate's own scale.
    """

    name: ClassVar[str] = "gzip"
    level: int = 1

    def encode(self, pixels: Pixels) -> bytes:
        """Return one gzip member (RFC 1952) with an extra sub-field `A2`: the big-endian Adler-32 of the pixels."""
        raw = _little_endian(pixels)
        adler = int(imagecodecs.deflate_adler32(raw))
        crc = int(imagecodecs.deflate_crc32(raw))
        deflated = imagecodecs.deflate_encode(raw, self.level, raw=True)
        head = _GZIP_HEAD.pack(*_GZIP_FIXED) + adler.to_bytes(4, "big")
        return b"".join((head, deflated, struct.pack("<II", crc, raw.nbytes & 0xFFFFFFFF)))

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
        """Return the pixels; the wrapper's CRC-32 is checked."""
        return _from_bytes(imagecodecs.gzip_decode, data, shape, dtype)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the core codecs `bytes` and `gzip`; the level, a hint for writers, is at most 9 there."""
        return [_BYTES, {"name": "gzip", "configuration": {"level": min(self.level, 9)}}]


@dataclass(frozen=True, slots=True)
class Zstd:
    """Zstandard at a level of 1 to 22."""

    name: ClassVar[str] = "zstd"
    level: int = 1

    def encode(self, pixels: Pixels) -> bytes:
        """Return one frame that states its content size."""
        return bytes(imagecodecs.zstd_encode(_little_endian(pixels), self.level))

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
        """Return the pixels."""
        return _from_bytes(imagecodecs.zstd_decode, data, shape, dtype)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the codecs `bytes` and `zstd`."""
        return [_BYTES, {"name": "zstd", "configuration": {"level": self.level, "checksum": False}}]


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """Little-endian pixels as they are."""

    name: ClassVar[str] = "none"

    def encode(self, pixels: Pixels) -> bytes:
        """Return the pixels' bytes."""
        return bytes(_little_endian(pixels).data)

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
        """Return the pixels, a view of `data`."""
        return _shaped(data, shape, dtype)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the core codec `bytes` alone."""
        return [_BYTES]


def make_codec(config: Config) -> Codec:
    """Return the codec that the configuration asks for."""
    mosaic = config.mosaic
    makers: dict[str, Callable[[], Codec]] = {
        "jpeg": lambda: Jpeg(mosaic.quality, mosaic.subsampling),
        "gzip": lambda: Gzip(mosaic.gzip_level),
        "zstd": lambda: Zstd(mosaic.zstd_level),
        "none": Uncompressed,
    }
    return makers[config.codec]()


def from_zarr(codecs: Sequence[Mapping[str, Any]]) -> Codec:
    """Read what `zarr_codecs` gave.

    Raises
    ------
    StoreError
        Codecs that this project does not write.
    """
    try:
        last = codecs[-1]
        settings = dict(last.get("configuration", {}))
        if last["name"] == "jpeg":
            return Jpeg(int(settings["quality"]), str(settings.get("subsampling", "422")))
        if last["name"] == "gzip":
            return Gzip(int(settings["level"]))
        if last["name"] == "zstd":
            return Zstd(int(settings["level"]))
        if last["name"] == "bytes":
            return Uncompressed()
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"The store's codecs cannot be understood ({error!r}).") from error
    raise StoreError(f"The store's chunks are compressed by {last['name']!r}.", "Known are jpeg, gzip, zstd and none.")


def gzip_to_zlib(data: bytes) -> bytes:
    """Swap the wrapper of what `Gzip.encode` gave: the same deflate stream as zlib (RFC 1950), nothing inflated.

    Raises
    ------
    StoreError
        When the wrapper is not this module's, so the Adler-32 is not known.
    """
    stream = zlib_in_gzip(data[:GZIP_START], len(data))
    return b"".join((_ZLIB_HEAD, memoryview(data)[GZIP_START:-8], stream.adler32))


@dataclass(frozen=True, slots=True)
class ZlibInGzip:
    """Where a zlib stream comes to lie in a gzip chunk that gets `head` and `adler32` written over its own wrapper.

    Parameters
    ----------
    offset, length : int
        Of the zlib stream, bytes from the start of the chunk.
    head, adler32 : bytes
        Its first and last bytes; the deflate stream between them stays.
    """

    offset: int
    length: int
    head: bytes
    adler32: bytes


def zlib_in_gzip(start: bytes, length: int) -> ZlibInGzip:
    """Return how a chunk of `Gzip.encode` becomes a zlib stream in its place.

    Parameters
    ----------
    start : bytes
        The first `GZIP_START` bytes of the chunk.
    length : int
        Of the whole chunk.

    Raises
    ------
    StoreError
        When the wrapper is not this module's, so the Adler-32 is not known.
    """
    if length < GZIP_START + 8 or start[: _GZIP_HEAD.size] != _GZIP_HEAD.pack(*_GZIP_FIXED):
        raise StoreError("A gzip chunk was not written by this program.", "Export with --compression zlib instead.")
    offset = GZIP_START - len(_ZLIB_HEAD)
    return ZlibInGzip(offset, length - 4 - offset, _ZLIB_HEAD, start[_GZIP_HEAD.size :])


def _little_endian(pixels: Pixels) -> Any:
    """Return a contiguous buffer without copying where it can; imagecodecs' annotations know of bytes only."""
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))


def _decoded(decode: Callable[..., Any], data: bytes, **settings: Any) -> Any:
    try:
        return decode(data, **settings)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"A chunk cannot be decoded ({error}).", "The store is damaged there.") from error


def _from_bytes(decode: Callable[..., Any], data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return _shaped(_decoded(decode, data, out=size), shape, dtype)


def _shaped(data: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Pixels:
    stored: NDArray[Any] = np.frombuffer(data, np.uint8)
    if stored.nbytes != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise _wrong_size(stored.nbytes, shape, dtype)
    return stored.view(np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _wrong_size(nbytes: int, shape: tuple[int, ...], dtype: DTypeLike) -> StoreError:
    return StoreError(
        f"A chunk decodes to {nbytes} bytes, which is not {np.dtype(dtype)} of shape {tuple(shape)}.",
        "The store is damaged there.",
    )
