"""What the focus network says, made true for one instrument: offset, gain, and the order of the camera's colours.

Axial colour and spherical aberration differ between objectives, cameras may give blue before red, and what is sharpest
to the eye need not be where the network's zero lies. A short stack of known distances tells all of it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_scanner.config import Config
from edge_scanner.errors import ScannerError, SourceError
from edge_scanner.focus.consensus import Consensus
from edge_scanner.focus.model import ModelFile
from edge_scanner.sealed import read_sealed, write_sealed

_WHAT = "focus calibration"
_ADVICE = "Measure it with `edge-scanner calibrate focus`."
FEWEST = 9
"""Frames that a calibration rests on at least."""
MOST_OF = 90
"""Per cent of the frames that must lie within a depth of field of their truth afterwards."""

Numbers = NDArray[np.float64]


class UncalibratedError(ScannerError):
    """The network's answers cannot be mapped to this instrument's defocus."""


@dataclass(frozen=True, slots=True)
class Line:
    """Defocus = `gain` * reading + `offset_um`.

    Parameters
    ----------
    gain, offset_um : float
    residual_um : float
        What nine of ten frames were off by at most.
    """

    gain: float = 1.0
    offset_um: float = 0.0
    residual_um: float = 0.0

    @classmethod
    def through(cls, read_um: Numbers, z_um: Numbers) -> Line:
        """Return the line by the median of the pairwise slopes (Theil and Sen), which no minority moves.

        Parameters
        ----------
        read_um, z_um : ndarray, (n,)
            What the network said of frames, and their true defocus; n of 2 or more.
        """
        one, other = np.triu_indices(len(z_um), 1)
        run_um = read_um[one] - read_um[other]
        rise_um = z_um[one] - z_um[other]
        apart = np.abs(rise_um) >= np.median(np.abs(rise_um))
        gain = float(np.median(rise_um[apart] / np.where(run_um[apart] == 0, 1e-9, run_um[apart])))
        offset_um = float(np.median(z_um - gain * read_um))
        off_um = np.abs(gain * read_um + offset_um - z_um)
        return cls(gain, offset_um, float(np.percentile(off_um, MOST_OF)))

    def applied(self, seen: Consensus) -> Consensus:
        """Return a consensus in true micrometres."""
        there = seen.scaled(abs(self.gain))
        return replace(there, dz_um=self.gain * seen.dz_um + self.offset_um)


@dataclass(frozen=True, slots=True)
class FocusCalibration:
    """What `focus.calibration` names.

    Parameters
    ----------
    measured : str
        ISO 8601 UTC.
    model_sha256 : str
        The network that it is for.
    magnification, numerical_aperture, pixel_size_um : float
        What it was measured with; it serves no other.
    frames : int
        What it rests on.
    swapped : bool
        Red and blue change places before the network sees a frame.
    line : Line
    """

    measured: str
    model_sha256: str
    magnification: float
    numerical_aperture: float
    pixel_size_um: float
    frames: int
    swapped: bool
    line: Line

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises
        ------
        StoreError
        """
        write_sealed(path, _WHAT, asdict(self))

    @classmethod
    def load(cls, path: Path, config: Config, model: ModelFile) -> FocusCalibration:
        """Read a file that fits a configuration and a network.

        Raises
        ------
        SourceError
            When it is missing, damaged, or was measured with another objective, pixel size or network.
        """
        told = read_sealed(path, _WHAT, _ADVICE)
        try:
            found = cls(**{**told, "line": Line(**told["line"])})
        except (KeyError, TypeError) as error:
            raise SourceError(f"The {_WHAT} {path} lacks something ({error}).", _ADVICE) from error
        for name in ("magnification", "numerical_aperture", "pixel_size_um"):
            own, now = getattr(found, name), getattr(config.optics, name)
            if not math.isclose(own, now):
                raise SourceError(
                    f"The {_WHAT} {path} is for another setting: its {name} was {own}, now it is {now}.", _ADVICE
                )
        if found.model_sha256 != model.sha256:
            raise SourceError(f"The {_WHAT} {path} was measured with another focus model.", _ADVICE)
        return found


def named_focus_calibration(config: Config, model: ModelFile) -> FocusCalibration | None:
    """Return the calibration that `focus.calibration` names; None where it names none.

    Raises
    ------
    SourceError
        When the file is missing, damaged or for another objective or network.
    """
    name = config.focus.calibration
    return FocusCalibration.load(Path(name), config, model) if name else None


def fitted(plain_um: Numbers, swapped_um: Numbers, z_um: Numbers, depth_um: float) -> tuple[bool, Line]:
    """Return the order of colours that tells the defocus better, and its line.

    Parameters
    ----------
    plain_um, swapped_um : ndarray, (n,)
        What the network said of each frame as it is, and with red and blue exchanged; not a number where it said
        nothing.
    z_um : ndarray, (n,)
        True defocus.
    depth_um : float
        Depth of field.

    Raises
    ------
    UncalibratedError
        Too few frames, or more than one in ten of them further off than a depth of field either way.
    """
    seen = np.isfinite(plain_um) & np.isfinite(swapped_um)
    if seen.sum() < FEWEST:
        raise UncalibratedError(
            f"Only {seen.sum()} frames showed the focus model anything.", "Bring textured tissue under the objective."
        )
    lines = {order: Line.through(read[seen], z_um[seen]) for order, read in ((False, plain_um), (True, swapped_um))}
    swapped = lines[True].residual_um < lines[False].residual_um
    line = lines[swapped]
    if not line.residual_um <= depth_um:
        raise UncalibratedError(
            f"The focus model does not tell defocus here: one frame in ten is off by more than {line.residual_um:.1f} "
            f"um, beyond the depth of field of {depth_um:.2f} um.",
            'Use focus.mode = "classical" with this objective, or train a model for it.',
        )
    return swapped, line
