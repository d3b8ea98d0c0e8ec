"""What many patches say together: one signed defocus, how sure it is, or that they do not agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LEAST_SIGMA_UM = 0.05
"""No patch counts as surer than this, or one of them would outvote all others."""

OUTLIER_SIGMA = 3.5
AGREEMENT = 0.6
"""Share of the weight that must lie near the median."""

SURE_UM, SURE_SHARE = 0.5, 0.15
"""A consensus is sure when its standard deviation is below the first, or below that share of its defocus."""


@dataclass(frozen=True, slots=True)
class Consensus:
    """What the patches of one frame say.

    Parameters
    ----------
    dz_um : float
        Signed defocus.
    sigma_um : float
        Its standard deviation.
    agreement : float
        Share of the patches' weight that agrees with it.
    patches : int
        How many were asked.
    unit : float
        Micrometres that one of the reference objective is worth.
    stretch : float
        What `sigma_um` was multiplied by for this objective; it does not change what is sure.
    """

    dz_um: float
    sigma_um: float
    agreement: float
    patches: int
    unit: float = 1.0
    stretch: float = 1.0

    @property
    def sure(self) -> bool:
        """Whether the stage may be moved by it."""
        most_um = max(SURE_UM * self.unit, SURE_SHARE * abs(self.dz_um))
        return self.agreement >= AGREEMENT and self.sigma_um <= self.stretch * most_um

    def scaled(self, factor: float) -> Consensus:
        """Return the same in another unit of length."""
        return replace(self, dz_um=self.dz_um * factor, sigma_um=self.sigma_um * factor, unit=self.unit * factor)

    def stretched(self, factor: float) -> Consensus:
        """Return the same with another standard deviation, as sure as before."""
        return replace(self, sigma_um=self.sigma_um * factor, stretch=self.stretch * factor)


def agree(dz_um: Numbers, sigma_um: Numbers, sigma_scale: float = 1.0) -> Consensus | None:
    """Join the verdicts of patches; None when there are none.

    The median by weight is the anchor, since no flipped minority moves it. Patches within 3.5 of their standard
    deviations of it are averaged by weight. What they scatter beyond their stated deviations widens the result, and
    their errors are taken as half shared, because one frame has one noise and one tissue.

    Parameters
    ----------
    dz_um, sigma_um : ndarray, (n,)
        Patches that are not finite are left out.
    sigma_scale : float
        Calibration of the result's standard deviation.
    """
    sound = np.isfinite(dz_um) & np.isfinite(sigma_um) & (sigma_um > 0)
    if not sound.any():
        return None
    dz, sigma = dz_um[sound], np.maximum(sigma_um[sound], LEAST_SIGMA_UM)
    weight = sigma**-2
    off = dz - _median(dz, weight)
    near = np.abs(off) <= OUTLIER_SIGMA * sigma + LEAST_SIGMA_UM
    inner = weight[near]
    mean = float(np.average(dz[near], weights=inner))
    scatter = float(np.average(((dz[near] - mean) / sigma[near]) ** 2))
    effective = 1 / (0.5 / near.sum() + 0.5) if near.sum() > 1 else 1.0
    typical = 1 / np.sqrt(inner.mean())
    spread = typical * np.sqrt(max(scatter, 1.0) / effective)
    return Consensus(mean, float(spread) * sigma_scale, float(inner.sum() / weight.sum()), int(sound.sum()))


def _median(values: Numbers, weight: Numbers) -> float:
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(share, share[-1] / 2)])
