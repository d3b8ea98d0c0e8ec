"""A scenario: the rig, the script, the faults and the budgets, read from TOML.

`like = "other.toml"` starts from another scenario; tables are merged, lists replaced.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hil_sim.rig import StageRig


class Section(BaseModel):
    """A frozen table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(Section):
    """One line of the script.

    Parameters
    ----------
    do : str
        A command of the daemon, or `wait` (until it works no more, or until `state` or `tiles`), or `kill` (-9, and
        start again), or `leave` (the user interface vanishes for `hold_s`, then another one comes).
    region_mm : (x, y, width, height)
        Of `scan`.
    again : bool
        `scan` goes on with the last scan.
    state, tiles
        What `wait` waits for; after `home`, the state in which to go on with the script.
    hold_s : float
        How long `wait` waits at least.
    refused : str
        The code with which the daemon must refuse.
    """

    do: Literal["home", "scan", "pause", "resume", "cancel", "stop", "reset", "wait", "kill", "leave"]
    region_mm: tuple[float, float, float, float] = (0.0, 0.0, 0.8, 0.6)
    again: bool = False
    state: str = ""
    tiles: int = 0
    hold_s: float = 0.0
    refused: str = ""


class Fault(Section):
    """Something that goes wrong; fires once when its conditions hold, and ends after `lasts_s` where that is given.

    Parameters
    ----------
    on : str
        `stage`, `camera`, `daemon` or `disk`.
    what : dict
        The command of its side socket, see `hil_sim.emulator` and `hil_sim.camera`; of `Daemon.ask`, `SmallDisk.ask`.
    after_tiles : int
    after_s : float
        Since the start of the script.
    lasts_s : float
    then : dict
        The command that ends it.
    """

    on: Literal["stage", "camera", "daemon", "disk"] = "stage"
    what: dict[str, Any]
    after_tiles: int = 0
    after_s: float = 0.0
    lasts_s: float = 0.0
    then: dict[str, Any] | None = None


class Budgets(Section):
    """What must hold at the end; what is left out is not asked. `outcome` is empty for a scan that did not end."""

    state: str = "IDLE"
    outcome: str = "completed"
    fault_code: str | None = None
    rejected_max: int = 0
    holes_max: int = 0
    seam_step_max: float | None = None
    truth_px_p95_max: float | None = None
    specimen_psnr_db_min: float | None = None
    peak_rss_mib_max: float = 600.0
    stop_ms_max: float | None = None
    moved_after_stop_um_max: float | None = None
    light_left_max: float = 0.0
    refused_targets_max: int = 0
    wall_s_max: float = 60.0


class Scenario(Section):
    """One hardware-in-the-loop run.

    Parameters
    ----------
    name : str
    stage : StageRig
    camera : str
        `remote`: frame by frame, without loss; `mjpeg`: a free-running stream, read by the driver `opencv`.
    disk_mb : float
        Scans go to a file system of that size; 0: to the folder itself.
    config : dict
        `section.key` of the daemon.
    """

    name: str
    stage: StageRig
    camera: Literal["remote", "mjpeg"] = "remote"
    disk_mb: float = 0.0
    config: dict[str, Any] = {}
    script: list[Step]
    faults: list[Fault] = []
    budgets: Budgets = Budgets()


def load(path: Path) -> Scenario:
    """Read a scenario.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or does not fit.
    """
    return Scenario.model_validate(_raw(path))


def _raw(path: Path) -> dict[str, Any]:
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    base = raw.pop("like", None)
    return raw if base is None else _merged(_raw(path.parent / base), raw)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out
