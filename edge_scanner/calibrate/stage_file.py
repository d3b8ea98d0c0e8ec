"""The stage's calibration file: how its axes lie in the picture, and its backlash."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_scanner.calibrate.axes import StageAxes
from edge_scanner.config import Config
from edge_scanner.errors import SourceError, StoreError

FORMAT = 1
_ADVICE = "Measure it with `edge-scanner calibrate pixel-size`."


@dataclass(frozen=True, slots=True)
class StageCalibration:
    """What `stage.calibration` names.

    Parameters
    ----------
    measured : str
        ISO 8601 UTC.
    pixel_size_um, magnification : float
        What it was measured with; it serves no other.
    axes : StageAxes or None
    backlash_um : (x, y) or None
        None: not measured yet.
    """

    measured: str
    pixel_size_um: float
    magnification: float
    axes: StageAxes | None = None
    backlash_um: tuple[float, float] | None = None

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises
        ------
        StoreError
        """
        told = {"format": FORMAT, **asdict(self)}
        text = json.dumps({**told, "sha256": _checksum(told)}, indent=2) + "\n"
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"The calibration {path} cannot be written ({error.strerror}).") from error

    @classmethod
    def load(cls, path: Path, config: Config) -> StageCalibration:
        """Read a file that fits a configuration.

        Raises
        ------
        SourceError
            When it is missing, damaged, or was measured with another pixel size or objective.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SourceError(f"There is no stage calibration {path}.", _ADVICE) from error
        except (OSError, ValueError) as error:
            raise SourceError(f"The stage calibration {path} cannot be read ({error}).", _ADVICE) from error
        if not isinstance(told, dict) or told.pop("sha256", None) != _checksum(told) or told.pop("format") != FORMAT:
            raise SourceError(f"The stage calibration {path} is damaged: its checksum does not fit.", _ADVICE)
        axes, backlash = told.pop("axes"), told.pop("backlash_um")
        found = cls(**told, axes=axes and StageAxes(**axes), backlash_um=backlash and (backlash[0], backlash[1]))
        for name in ("pixel_size_um", "magnification"):
            own, now = getattr(found, name), getattr(config.optics, name)
            if not math.isclose(own, now):
                raise SourceError(
                    f"The stage calibration {path} is for another setting: its {name} was {own}, now it is {now}.",
                    "Measure it again with `edge-scanner calibrate pixel-size`.",
                )
        return found


def _checksum(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
