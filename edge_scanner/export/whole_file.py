"""Output files that appear whole or not at all: written beside as `OUT.partial`, synced, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_scanner.errors import DiskLowError, ScannerError, StoreError, UsageError

FULL = "The disk became full"
"""How the sentence begins when it did: what an export in a process of its own is known by."""


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raise UsageError when `out` is a directory, or is there and may not be replaced."""
    if out.is_dir():
        raise UsageError(f"The output {out} is a directory.", "Give the name of a file.")
    if out.exists() and not overwrite:
        raise UsageError(f"The output {out} exists.", "Give another name or --overwrite.")


@contextmanager
def whole_file(out: Path, *, overwrite: bool = False) -> Iterator[int]:
    """Yield the descriptor of an empty file that becomes `out` when the block ends well, and vanishes otherwise.

    Raises
    ------
    UsageError
        `out` is a directory, or exists without `overwrite`.
    DiskLowError
        The disk became full.
    StoreError
        The file cannot be made or written, or another process is writing it.
    """
    refuse_existing(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    try:
        fd = _opened(partial)
        try:
            yield fd
            os.fsync(fd)
            refuse_existing(out, overwrite)
            partial.replace(out)
            _sync_folder(out.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise _sentence(out, error) from error


def _opened(partial: Path) -> int:
    """Open, lock and empty the file; a second export to the same name is refused."""
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(f"Another process is writing {partial}.", "Wait for it to end.") from error
    except OSError:
        os.close(fd)
        raise
    return fd


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sentence(out: Path, error: OSError) -> ScannerError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskLowError(f"{FULL} while {out.name} was written.", "Make room and export again.")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StoreError(f"There is no folder {out.parent} to write into.", "Create it first.")
    return StoreError(f"{out} cannot be written ({error.strerror}).", "Check the path and its permissions.")
