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
        start again).
    region_mm : (x, y, width, height)
        Of `scan`.
    again : bool
        `scan` goes on with the last scan.
    state, tiles
        What `wait` waits for.
    refused : str
        The code with which the daemon must refuse.
    """

    do: Literal["home", "scan", "pause", "resume", "cancel", "stop", "reset", "wait", "kill"]
    region_mm: tuple[float, float, float, float] = (0.0, 0.0, 0.8, 0.6)
    again: bool = False
    state: str = ""
    tiles: int = 0
    refused: str = ""


class Fault(Section):
    """Something that goes wrong; fires once when its conditions hold, and ends after `lasts_s` where that is given.

    Parameters
    ----------
    on : str
        `stage` or `camera`.
    what : dict
        The command of its side socket, see `hil_sim.emulator` and `hil_sim.camera`.
    after_tiles : int
    after_s : float
        Since the start of the script.
    lasts_s : float
    then : dict
        The command that ends it.
    """

    on: Literal["stage", "camera"] = "stage"
    what: dict[str, Any]
    after_tiles: int = 0
    after_s: float = 0.0
    lasts_s: float = 0.0
    then: dict[str, Any] | None = None


class Budgets(Section):
    """What must hold at the end; what is left out is not asked."""

    state: str = "IDLE"
    outcome: str | None = "completed"
    fault_code: str | None = None
    rejected_max: int = 0
    holes_max: int = 0
    seam_step_max: float | None = None
    truth_px_p95_max: float | None = None
    specimen_psnr_db_min: float | None = None
    peak_rss_mib_max: float = 600.0
    stop_ms_max: float | None = None
    moved_after_stop_um_max: float | None = None
    refused_targets_max: int = 0
    wall_s_max: float = 60.0


class Scenario(Section):
    """One hardware-in-the-loop run."""

    name: str
    stage: StageRig
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
