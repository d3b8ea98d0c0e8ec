"""What befalls the machine itself: a small disk that fills up, a slow disk, a processor that is throttled by heat."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

ROUND_S = 0.05
_WRITES = "write,pwrite64,writev,fsync,fdatasync,syncfs"


class SmallDisk:
    """A file system that can really be full; what `on = "disk"` speaks to: `fill` (`leave_mb`) and `free`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / "filler"

    def ask(self, cmd: str, leave_mb: float = 0.0) -> None:
        """Fill the disk up to what is left, or free it."""
        if cmd == "free":
            self._filler.unlink(missing_ok=True)
            return
        usage = os.statvfs(self._folder)
        size = usage.f_bavail * usage.f_frsize - int(leave_mb * 1e6)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: float) -> Iterator[SmallDisk]:
    """Mount a file system of that size at an empty folder; needs root.

    Raises
    ------
    ValueError
        It cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb:g}m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        raise ValueError("a small disk can be mounted by root only")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Throttle:
    """A processor that gives a process a share of its time only, as heat makes it: stopped and continued in turn."""

    def __init__(self, pid: int, share: float) -> None:
        self._pid, self._share = pid, share
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let it run freely again."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not self._over.is_set():
                os.kill(self._pid, signal.SIGSTOP)
                self._over.wait(ROUND_S * (1 - self._share))
                os.kill(self._pid, signal.SIGCONT)
                self._over.wait(ROUND_S * self._share)


class SlowDisk:
    """A disk on which each write and each sync of a process takes so much longer; by strace, which must be there."""

    def __init__(self, pid: int, delay_ms: float) -> None:
        delay = f"inject={_WRITES}:delay_enter={delay_ms * 1000:.0f}"
        files = ["-e", f"trace={_WRITES}", "-e", delay]
        command = ["strace", "-f", "-q", "-o", "/dev/null", "-p", str(pid), *files]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise ValueError("a slow disk needs strace") from error

    def end(self) -> None:
        """Let it write freely again."""
        self._process.terminate()
        self._process.wait()
