"""How much memory this process has needed, and how much it may have."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

SERVICE = "system.slice/edge-scanner.service"
"""Where systemd puts the daemon; the doctor, run from a shell, looks there too while the service runs."""

LARGE_BLOCK_BYTES = 4 << 20
"""numpy asks for huge pages from here on, which makes new memory cheap; smaller blocks are better kept."""
KEPT_BYTES = 32 << 20
"""Free memory that each of glibc's arenas may keep for smaller blocks."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def peak_rss_mib() -> float:
    """Return the most memory that this process had; `ru_maxrss` would count that of the process which started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mib() -> float:
    """Return how much memory this process has now; where the system does not tell, the most that it had."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20
    return peak_rss_mib()


def return_large_blocks() -> None:
    """Have the C library give a frame's memory back to the system when it is freed.

    glibc would keep blocks of up to 32 MiB for later, in an arena for each thread: frames freed by one thread and made
    by another then fill several. Told so beforehand, it need not find out by giving back, and asking for again, what
    lies below that: registering took 0.8 of the time.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # glibc's own
        set_option(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        set_option(_M_TRIM_THRESHOLD, KEPT_BYTES)


def memory_limit(root: Path = Path("/"), service: str = "") -> tuple[int, str]:
    """Return the bytes that this process can have at most, and what bounds them.

    Parameters
    ----------
    root : Path
        Where `proc` and `sys` lie.
    service : str, optional
        The control group of a service whose limits count too.

    Returns
    -------
    int
        The smallest of the machine's memory and the limits of its control groups (v1, v2), systemd's `MemoryMax`
        among them.
    str
        Which one it is.
    """
    return min([(meminfo("MemTotal", root), "the machine's memory"), *_groups(root, service)])


def meminfo(name: str, root: Path = Path("/")) -> int:
    """Return a line of `/proc/meminfo` in bytes."""
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _groups(root: Path, service: str) -> Iterator[tuple[int, str]]:
    mounted = root / "sys/fs/cgroup"
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    if service:
        own += [f"0::/{service}", f"1:memory:/{service}"]
    for line in own:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, file = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for at in (group, *group.parents):
            if not at.is_relative_to(top):
                break
            limit = _limit(at / file)
            if limit is not None:
                yield limit, f"the memory limit of the control group {at.name if at != top else '/'}"


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
