"""What the board says of heat and power, read from sysfs; only the power mode is particular to a Jetson."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FRESH_S = 1.0


def is_jetson(root: Path = Path("/")) -> bool:
    """Tell whether this is an NVIDIA Jetson."""
    if (root / "etc/nv_tegra_release").exists():
        return True
    compatible = _text(root / "proc/device-tree/compatible")
    return compatible is not None and "tegra" in compatible


class Board:
    """Heat and power, read at most once a second however often they are asked for.

    Parameters
    ----------
    root : Path
        Where `sys`, `proc` and `var` lie.
    now_s : callable
        Monotonic seconds.
    """

    def __init__(self, root: Path = Path("/"), now_s: Callable[[], float] = time.monotonic) -> None:
        self._root, self._now_s = root, now_s
        self._last: tuple[float, dict[str, Any]] | None = None

    def thermal(self) -> dict[str, Any]:
        """Return what `thermal` returned a second ago or less."""
        now_s = self._now_s()
        if self._last is None or now_s - self._last[0] >= FRESH_S:
            self._last = now_s, thermal(self._root)
        return self._last[1]


def thermal(root: Path = Path("/")) -> dict[str, Any]:
    """Return heat and power as the status shows them.

    Returns
    -------
    dict
        `max_c`: the hottest zone in degrees Celsius; `zone`: its name; `throttled`: True while the kernel slows a
        processor down because of heat; `power_mode`: the Jetson's (number of `nvpmodel`), `cpu_share`: the highest
        clock that is allowed now, as a share of the highest that there is. None each where the kernel does not tell.
    """
    zones = sorted(_zones(root), reverse=True)
    hottest = zones[0] if zones else (None, None)
    return {
        "max_c": hottest[0],
        "zone": hottest[1],
        "throttled": _throttled(root),
        "power_mode": _power_mode(root),
        "cpu_share": _cpu_share(root),
    }


def _zones(root: Path) -> Iterator[tuple[float, str]]:
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        milli_c = _number(zone / "temp")
        if milli_c is not None and milli_c > -100_000:  # zones that are switched off report -256 C
            yield milli_c / 1000, _text(zone / "type") or zone.name


def _throttled(root: Path) -> bool | None:
    states = [
        _number(device / "cur_state")
        for device in (root / "sys/class/thermal").glob("cooling_device*")
        if any(word in (_text(device / "type") or "").lower() for word in ("cpufreq", "processor", "devfreq", "gpu"))
    ]
    known = [state for state in states if state is not None]
    return any(state > 0 for state in known) if known else None


def _power_mode(root: Path) -> str | None:
    status = _text(root / "var/lib/nvpmodel/status")  # "pmode:0002"
    return None if status is None else status.partition(":")[2].lstrip("0") or "0"


def _cpu_share(root: Path) -> float | None:
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
    pairs = [(_number(p / "scaling_max_freq"), _number(p / "cpuinfo_max_freq")) for p in policies]
    shares = [allowed / most for allowed, most in pairs if allowed is not None and most]
    return round(min(shares), 3) if shares else None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().strip("\0")
    except OSError:
        return None
