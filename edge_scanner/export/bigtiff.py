"""A small BigTIFF writer: tiles go in as encoded bytes, and directories may share them.

Only what a pyramidal OME-TIFF needs. Tiles first, directories last; the header's link is set at the very end, so a
file that was cut short has no first directory and no reader takes it for whole.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0)
_LINK = 8  # where the header keeps the first directory's offset
_BUFFER = 4 << 20
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


class Tag(IntEnum):
    """The tags written, by their names in the TIFF specification."""

    NEW_SUBFILE_TYPE = 254
    IMAGE_WIDTH = 256
    IMAGE_LENGTH = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    IMAGE_DESCRIPTION = 270
    STRIP_OFFSETS = 273
    SAMPLES_PER_PIXEL = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTE_COUNTS = 279
    X_RESOLUTION = 282
    Y_RESOLUTION = 283
    PLANAR_CONFIGURATION = 284
    RESOLUTION_UNIT = 296
    SOFTWARE = 305
    DATE_TIME = 306
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTE_COUNTS = 325
    SUB_IFDS = 330
    SAMPLE_FORMAT = 339
    YCBCR_SUBSAMPLING = 530
    REFERENCE_BLACK_WHITE = 532
    ICC_PROFILE = 34675


class Compression(IntEnum):
    """Values of the Compression tag."""

    NONE = 1
    JPEG = 7
    DEFLATE = 8
    ZSTD = 50000


@dataclass(frozen=True, slots=True)
class Directory:
    """One image file directory; its tiles are in the file already.

    Parameters
    ----------
    height_px, width_px, samples : int
    dtype : dtype
        uint8 or uint16, little endian.
    compression : Compression
    offsets, counts : ndarray of uint64
        Of each tile, row by row. Directories with equal values share them in the file.
    tile_px : int
        Side of a tile; 0 for a single strip.
    subsampling : tuple of int or None
        Horizontal and vertical, of YCbCr JPEG; None: RGB or grey.
    pixel_size_um : float or None
        For the resolution tags.
    subfile_type : int
        Bit 0: a reduced image; 9 is a macro.
    texts : mapping of Tag to str or bytes
        ASCII (UTF-8) or, for bytes, UNDEFINED fields.
    plain_grey : bool
        Write SamplesPerPixel though it is the default of 1. OpenSlide refuses a file without it, and must: of 16-bit
        or multi-channel slides it shows the first channel in 8 bits, with wrong pixels in the last column of tiles.
    levels : sequence of Directory
        Lower resolutions, as SubIFDs, largest first.
    """

    height_px: int
    width_px: int
    samples: int
    dtype: np.dtype[Any]
    compression: Compression
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    tile_px: int = 0
    subsampling: tuple[int, int] | None = None
    pixel_size_um: float | None = None
    subfile_type: int = 0
    texts: Mapping[Tag, str | bytes] = field(default_factory=dict)
    plain_grey: bool = True
    levels: Sequence[Directory] = ()


class TiffWriter:
    """Appends encoded tiles to an open file, then writes the directories.

    Buffers at most 4 MiB of small appends.

    Parameters
    ----------
    fd : int
        Open for reading and writing, empty.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray(_HEADER)
        self._flushed = 0
        self._values: dict[bytes, int] = {}

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._flushed + len(self._buffer)

    def append(self, data: bytes | memoryview) -> int:
        """Append bytes and return their offset."""
        offset = self.size
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()
        return offset

    def copy_from(self, fd: int, offset: int, length: int, patches: Iterable[tuple[int, bytes]] = ()) -> int:
        """Append a range of another file, inside the kernel where it can, and return its offset here.

        Parameters
        ----------
        fd : int
            The other file.
        offset, length : int
            The range in it.
        patches : iterable of (int, bytes)
            Bytes to write over the copy, at offsets from its start.

        Raises
        ------
        EOFError
            The other file ends before the range does.
        """
        self._flush()
        start, end = self._flushed, self._flushed + length
        at = start
        while at < end:
            copied = self._copy_some(fd, offset + at - start, end - at, at)
            if not copied:
                raise EOFError
            at += copied
        for place, data in patches:
            os.pwrite(self._fd, data, start + place)
        self._passed(length)
        return start

    def finish(self, chain: Sequence[Directory]) -> None:
        """Write the main chain of directories, and last of all the header's link to it."""
        links = [self._directory(directory) for directory in chain]
        self._flush()
        first = links[0][0]
        for (_, link), (following, _) in pairwise(links):
            os.pwrite(self._fd, struct.pack("<Q", following), link)
        os.pwrite(self._fd, struct.pack("<Q", first), _LINK)

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        while view:
            written = os.pwrite(self._fd, view, self._flushed)
            self._passed(written)
            view = view[written:]
        self._buffer = bytearray()

    def _passed(self, count: int) -> None:
        """Have the kernel begin to write what was passed to it, so that the final sync finds little left to do."""
        os.posix_fadvise(self._fd, self._flushed, count, os.POSIX_FADV_DONTNEED)
        self._flushed += count

    def _copy_some(self, fd: int, offset: int, length: int, to: int) -> int:
        try:
            return os.copy_file_range(fd, self._fd, length, offset, to)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
        return os.pwrite(self._fd, os.pread(fd, min(length, _BUFFER), offset), to)

    def _directory(self, image: Directory) -> tuple[int, int]:
        """Write one directory and return its offset and that of its link to the next."""
        fields = dict(_fields(image))
        if image.levels:
            fields[Tag.SUB_IFDS] = ("<u8", _IFD8, np.array([self._directory(level)[0] for level in image.levels]))
        entries = b"".join(self._entry(tag, *fields[tag]) for tag in sorted(fields))
        self.append(bytes(-self.size % 8))
        offset = self.append(struct.pack("<Q", len(fields)) + entries + bytes(8))
        return offset, self.size - 8

    def _entry(self, tag: Tag, dtype: str, kind: int, values: NDArray[Any] | bytes) -> bytes:
        count = len(values) // (2 if kind == _RATIONAL else 1)
        data = values if isinstance(values, bytes) else values.astype(dtype).tobytes()
        if len(data) <= 8:
            return struct.pack("<HHQ8s", tag, kind, count, data)
        if data not in self._values:
            self.append(bytes(-self.size % 8))
            self._values[data] = self.append(data)
        return struct.pack("<HHQQ", tag, kind, count, self._values[data])


_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8, _IFD8 = 2, 3, 4, 5, 7, 16, 18
_Field = tuple[str, int, "NDArray[Any] | bytes"]


def _fields(image: Directory) -> dict[Tag, _Field]:
    depth = image.dtype.itemsize * 8
    fields = {
        Tag.NEW_SUBFILE_TYPE: _long(image.subfile_type),
        Tag.IMAGE_WIDTH: _long(image.width_px),
        Tag.IMAGE_LENGTH: _long(image.height_px),
        Tag.BITS_PER_SAMPLE: _short(*[depth] * image.samples),
        Tag.COMPRESSION: _short(image.compression),
        Tag.PHOTOMETRIC: _short(_photometric(image)),
        Tag.PLANAR_CONFIGURATION: _short(1),
        Tag.SAMPLE_FORMAT: _short(*[1] * image.samples),
    }
    if image.samples > 1 or image.plain_grey:
        fields[Tag.SAMPLES_PER_PIXEL] = _short(image.samples)
    if image.tile_px:
        fields |= {Tag.TILE_WIDTH: _long(image.tile_px), Tag.TILE_LENGTH: _long(image.tile_px)}
        fields |= {Tag.TILE_OFFSETS: ("<u8", _LONG8, image.offsets), Tag.TILE_BYTE_COUNTS: ("<u4", _LONG, image.counts)}
    else:
        fields |= {Tag.ROWS_PER_STRIP: _long(image.height_px)}
        fields |= {
            Tag.STRIP_OFFSETS: ("<u8", _LONG8, image.offsets),
            Tag.STRIP_BYTE_COUNTS: ("<u4", _LONG, image.counts),
        }
    if image.subsampling:
        fields[Tag.YCBCR_SUBSAMPLING] = _short(*image.subsampling)
        fields[Tag.REFERENCE_BLACK_WHITE] = _rationals(0, 255, 128, 255, 128, 255)
    if image.pixel_size_um:
        resolution = _rationals(10_000 / image.pixel_size_um)
        fields |= {Tag.X_RESOLUTION: resolution, Tag.Y_RESOLUTION: resolution, Tag.RESOLUTION_UNIT: _short(3)}
    for tag, text in image.texts.items():
        fields[tag] = ("u1", _UNDEFINED, text) if isinstance(text, bytes) else ("u1", _ASCII, text.encode() + b"\0")
    return fields


def _photometric(image: Directory) -> int:
    """6 is YCbCr, 2 RGB, 1 grey with black at zero."""
    if image.subsampling:
        return 6
    return 2 if image.samples == 3 else 1


def _short(*values: int) -> _Field:
    return "<u2", _SHORT, np.array(values)


def _long(value: int) -> _Field:
    return "<u4", _LONG, np.array([value])


def _rationals(*values: float) -> _Field:
    pairs = []
    for value in values:
        limit = min(1_000_000, int((1 << 32) / max(value, 1)) - 1)
        fraction = Fraction(value).limit_denominator(max(1, limit))
        pairs += [fraction.numerator, fraction.denominator]
    return "<u4", _RATIONAL, np.array(pairs)
