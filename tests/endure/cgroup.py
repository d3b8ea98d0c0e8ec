"""What the kernel can be told to hold back: memory of a process group, bytes a second of a disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
BLKIO = Path("/sys/fs/cgroup/blkio")


class RefusedError(Exception):
    """This machine cannot hold what was asked; the sentence says why."""


class MemoryGroup:
    """A control group with a memory limit, version 1 or 2, whichever the machine mounts; page cache counts too.

    Parameters
    ----------
    name : str
    limit_bytes : int

    Raises
    ------
    RefusedError
        Not root, or no memory controller.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        if os.geteuid() != 0:
            raise RefusedError("A memory limit needs root.")
        self.version = 1 if (V1 / "memory.limit_in_bytes").exists() else 2
        controllers = V2 / "cgroup.controllers"
        if self.version == 2 and not (controllers.exists() and "memory" in controllers.read_text()):
            raise RefusedError("This machine mounts no memory controller, neither of cgroup 1 nor 2.")
        self._folder = (V1 if self.version == 1 else V2) / name
        if self.version == 2:
            (V2 / "cgroup.subtree_control").write_text("+memory")
        self._folder.mkdir(exist_ok=True)
        self._set("memory.limit_in_bytes" if self.version == 1 else "memory.max", limit_bytes)
        with contextlib.suppress(OSError):  # neither is there without swap accounting
            self._set(*(("memory.memsw.limit_in_bytes", limit_bytes) if self.version == 1 else ("memory.swap.max", 0)))

    def command(self, *command: str) -> list[str]:
        """Return the command that runs another one in the group from its first instruction."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *command]

    def pids(self) -> list[int]:
        """Return the processes in the group."""
        return [int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()]

    def peak_bytes(self) -> int:
        """Return the most that was charged, page cache and kernel memory included."""
        path = self._folder / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")
        return int(path.read_text()) if path.exists() else 0

    def kills(self) -> int:
        """Return how many processes the kernel killed for memory."""
        path = self._folder / ("memory.oom_control" if self.version == 1 else "memory.events")
        return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])

    def remove(self) -> None:
        """Remove the group; its processes have ended."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.1)  # the kernel takes a moment to let go

    def _set(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))


@contextlib.contextmanager
def slow_disk(root: Path, size_bytes: int, bytes_s: int) -> Iterator[Path]:
    """Mount an ext4 file system on a loop device whose writes the kernel lets through at that rate.

    The limit is the root group's: what the kernel itself writes back from the page cache is held too.

    Raises
    ------
    RefusedError
        Not root, or no throttle.
    """
    throttle = BLKIO / "blkio.throttle.write_bps_device"
    if os.geteuid() != 0 or not throttle.exists():
        raise RefusedError("A slow disk needs root and the blkio throttle of cgroup 1.")
    image, folder = root / "slow.img", root / "slow"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    call("mount", "-o", "loop", str(image), str(folder))
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        throttle.write_text(f"{name} {bytes_s}")
        yield folder
    finally:
        throttle.write_text(f"{name} 0")
        call("umount", str(folder))
        image.unlink()
        folder.rmdir()


def measured_bytes_s(folder: Path, size_bytes: int = 40_000_000) -> float:
    """Return how fast a file is written there and made durable."""
    path = folder / "probe"
    began_s = time.monotonic()
    with path.open("wb") as file:
        file.write(os.urandom(size_bytes))
        file.flush()
        os.fsync(file.fileno())
    took_s = time.monotonic() - began_s
    path.unlink()
    return size_bytes / took_s


def call(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
