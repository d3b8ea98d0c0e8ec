"""The stage's calibration file: how its axes lie in the picture, and its backlash."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_scanner.calibrate.axes import StageAxes
from edge_scanner.config import Config
from edge_scanner.errors import SourceError
from edge_scanner.sealed import read_sealed, write_sealed

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
        write_sealed(path, "stage calibration", asdict(self))

    @classmethod
    def load(cls, path: Path, config: Config) -> StageCalibration:
        """Read a file that fits a configuration.

        Raises
        ------
        SourceError
            When it is missing, damaged, or was measured with another pixel size or objective.
        """
        told = read_sealed(path, "stage calibration", _ADVICE)
        try:
            axes, backlash = told.pop("axes"), told.pop("backlash_um")
            found = cls(**told, axes=axes and StageAxes(**axes), backlash_um=backlash and (backlash[0], backlash[1]))
        except (KeyError, TypeError) as error:
            raise SourceError(f"{path} is not a stage calibration ({error}).", _ADVICE) from error
        for name in ("pixel_size_um", "magnification"):
            own, now = getattr(found, name), getattr(config.optics, name)
            if not math.isclose(own, now):
                raise SourceError(
                    f"The stage calibration {path} is for another setting: its {name} was {own}, now it is {now}.",
                    "Measure it again with `edge-scanner calibrate pixel-size`.",
                )
        return found
