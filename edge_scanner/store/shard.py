"""One shard file: an index at the start that is rewritten in place, then chunks in the order in which they came.

Nothing here holds a file open between calls, so the number of descriptors does not grow with the slide.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from edge_scanner.errors import DiskLowError, StoreError

Index = NDArray[np.uint64]
"""(slots, 2) uint64: offset and length in bytes of each part; `ABSENT` twice where there is none."""

ABSENT = np.iinfo(np.uint64).max
_TRIES = 8
"""Reads of an index that another process rewrites meanwhile, before it counts as corrupt."""
_PAUSE_S = 1e-4
"""Doubled before each read again: 25 ms in all, for a writer that is held off its processor halfway."""


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes."""
    return int(google_crc32c.value(data))


def empty_index(slots: int) -> Index:
    """Return an index with no parts."""
    return np.full((slots, 2), ABSENT, np.uint64)


def index_size(slots: int) -> int:
    """Return the bytes of an index with its checksum; the first part begins there."""
    return 16 * slots + 4


def present(index: Index, slot: int) -> bool:
    """Tell whether a part is there."""
    return bool(index[slot, 0] != ABSENT)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says into the errors of this package."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskLowError(
                f"The disk is full: {path} cannot grow.", "Free some space; where bytes are free, remove files."
            ) from error
        raise StoreError(f"{path} cannot be read or written ({error.strerror}).", "Check the disk.") from error


def create(path: Path, slots: int) -> None:
    """Write a shard with an empty index; it appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with disk_errors(path):
        partial.write_bytes(_packed(empty_index(slots)))
        partial.rename(path)


def write(path: Path, offset: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write parts one after the other from an offset on."""
    with _opened(path, os.O_WRONLY) as fd:
        for part in parts:
            _write_all(fd, part, offset)
            offset += len(part)


def write_index(path: Path, index: Index) -> None:
    """Rewrite the index in place, in one write, and wait until it is on the disk."""
    with _opened(path, os.O_WRONLY) as fd:
        _write_all(fd, _packed(index), 0)
        os.fsync(fd)


def truncate(path: Path, size: int) -> None:
    """Cut a shard's tail off."""
    with disk_errors(path):
        os.truncate(path, size)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    with _opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def read_index(path: Path, slots: int) -> Index:
    """Return the index; empty when the shard does not exist.

    Raises
    ------
    StoreError
        Truncated file or wrong checksum, also after some more tries.
    """
    size = index_size(slots)
    try:
        for tried in range(_TRIES):
            if tried:
                time.sleep(_PAUSE_S * 2**tried)
            with _opened(path, os.O_RDONLY) as fd:
                raw = os.pread(fd, size, 0)
            if len(raw) < size:
                raise StoreError(f"The shard {path} is truncated.", "Restore the file or resume the scan.")
            if int.from_bytes(raw[-4:], "little") == crc32c(raw[:-4]):
                return np.frombuffer(raw[:-4], "<u8").reshape(slots, 2).astype(np.uint64, copy=False)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return empty_index(slots)
        raise
    raise StoreError(f"The index of the shard {path} is corrupt.", "Resume the scan, which rebuilds it.")


def read_part(path: Path, offset: int, length: int, slots: int) -> bytes:
    """Return the bytes of one part.

    Raises
    ------
    StoreError
        When the index points into itself or beyond the end of the file.
    """
    if offset < index_size(slots):
        raise StoreError(f"The index of the shard {path} is corrupt.", "Resume the scan, which rebuilds it.")
    with _opened(path, os.O_RDONLY) as fd:
        if offset + length > os.fstat(fd).st_size:
            raise StoreError(f"The shard {path} is truncated.", "Restore the file or resume the scan.")
        return os.pread(fd, length, offset)


def _packed(index: Index) -> bytes:
    raw = index.astype("<u8", copy=False).tobytes()
    return raw + crc32c(raw).to_bytes(4, "little")


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    with disk_errors(path):
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    rest: Any = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done
