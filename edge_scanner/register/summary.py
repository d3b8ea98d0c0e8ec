"""What registration tells of a scan: every pair, lost steps, and the report's figures."""

from __future__ import annotations

from dataclasses import dataclass

from edge_scanner.register.pairwise import Match


@dataclass(frozen=True, slots=True)
class Pair:
    """What became of an overlap between two tiles with pixels.

    Parameters
    ----------
    first, second : int
        Indices in the plan; `first` lies left of or above `second`.
    match : Match
        The measurement.
    used : bool
        Whether the solve kept it.
    residual_px : float
        Distance between measured and final shift; NaN where nothing trustworthy was measured.
    """

    first: int
    second: int
    match: Match
    used: bool
    residual_px: float


@dataclass(frozen=True, slots=True)
class LostSteps:
    """From a tile on, in scan order, the stage stood elsewhere than it said.

    Parameters
    ----------
    index : int
        The first tile that is known to lie so.
    y_px, x_px : float
        By how much more than the tile before.
    corrected : bool
        Several pairs agree, and the tiles were placed accordingly. False: one pair or pairs at odds say so; the tiles
        lie where the stage says.
    """

    index: int
    y_px: float
    x_px: float
    corrected: bool


@dataclass(frozen=True, slots=True)
class RegistrationSummary:
    """The report's figures; residuals in pixels over the pairs that were used, NaN when there is none."""

    tiles: int
    tiles_registered: int
    tiles_stage_only: int
    pairs: int
    pairs_used: int
    share_used: float
    residual_px_p50: float
    residual_px_p95: float
    residual_px_worst: float
    lost_steps: tuple[LostSteps, ...]
