"""The focal surface: the stage z at which each place of the slide is in focus."""

from __future__ import annotations

import numpy as np

from edge_scanner.config import SimConfig
from edge_scanner.geometry import Limits

_BOW_PERIOD_UM = 20_000.0
_BUMPS = 6
_STAGE_SHARE = 0.8


class FocalSurface:
    """Tilt, bow and smooth local bumps, a pure function of the seed; zero everywhere when switched off.

    Parameters
    ----------
    sim : SimConfig
        `surface` switches it; `tilt_um_per_mm` is the slope, `bow_um` the height of a swell of 20 mm period,
        `bumps_um` the largest sum of six waves of 2 to 6 mm.
    limits : Limits
        The surface stays in the middle 80 % of the stage's z range.
    """

    def __init__(self, sim: SimConfig, limits: Limits) -> None:
        rng = np.random.default_rng([sim.seed, 0x50F])
        direction = rng.uniform(0, 2 * np.pi)
        slope = sim.tilt_um_per_mm / 1000
        self._tilt = slope * np.cos(direction), slope * np.sin(direction)
        self._bow_um = sim.bow_um
        self._top_um = rng.uniform(-_BOW_PERIOD_UM / 4, _BOW_PERIOD_UM / 4, 2)
        angle = rng.uniform(0, 2 * np.pi, _BUMPS)
        number = 2 * np.pi / rng.uniform(2000, 6000, _BUMPS)
        self._wave = number * np.cos(angle), number * np.sin(angle), rng.uniform(0, 2 * np.pi, _BUMPS)
        self._bump_um = sim.bumps_um / _BUMPS
        middle, half = (limits.z_max_um + limits.z_min_um) / 2, (limits.z_max_um - limits.z_min_um) / 2
        self._range = middle - _STAGE_SHARE * half, middle + _STAGE_SHARE * half
        self._on = sim.surface

    def z_um(self, x_um: float, y_um: float) -> float:
        """Return the in-focus z of a stage point, micrometres."""
        if not self._on:
            return 0.0
        r = np.hypot(x_um - self._top_um[0], y_um - self._top_um[1])
        bow = self._bow_um * 0.5 * (1 + np.cos(2 * np.pi * r / _BOW_PERIOD_UM))
        kx, ky, phase = self._wave
        bumps = self._bump_um * np.sum(np.sin(kx * x_um + ky * y_um + phase))
        return float(np.clip(self._tilt[0] * x_um + self._tilt[1] * y_um + bow + bumps, *self._range))
