"""How much memory this process has needed."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_rss_mib() -> float:
    """Return the most memory that this process had; `ru_maxrss` would count that of the process which started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
