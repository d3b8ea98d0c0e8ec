"""Which tiles the collector takes: of a target that nobody has pushed yet, of the right shape and type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edge_scanner.errors import UsageError
from edge_scanner.geometry import Position
from edge_scanner.plan import ScanPlan, Target
from edge_scanner.tile import Tile, Verdict


class Offers:
    """Judges offers; one thread.

    Parameters
    ----------
    plan : ScanPlan
    channels : int
    dtype : dtype
    tolerance_um : float
        How far from a target a position may lie.
    taken : set of int
        Targets that are taken already.
    """

    def __init__(
        self, plan: ScanPlan, *, channels: int, dtype: np.dtype[Any], tolerance_um: float, taken: set[int]
    ) -> None:
        self.shape = (plan.tile_height_px, plan.tile_width_px, channels)
        self.dtype = dtype
        self._plan, self._tolerance_um, self._taken = plan, tolerance_um, taken

    def accept(self, offer: dict[str, Any]) -> Tile:
        """Take an offer's target and return its tile, the pixels of which are still to come.

        Raises
        ------
        UsageError
            The offer cannot be taken as it is.
        ValueError, KeyError, TypeError
            It is not an offer.
        """
        verdict, z_um = Verdict(offer["verdict"]), float(offer["z_um"])
        if not math.isfinite(z_um):
            raise UsageError(f"z is {z_um} um.", "Give a finite number or leave it out.")
        target = self._target(offer["target"]) if "target" in offer else self._nearest(offer["x_um"], offer["y_um"])
        self._check_pixels(verdict, tuple(offer["shape"]), str(offer["dtype"]))
        if target.index in self._taken:
            raise UsageError(
                f"The target {target.index}, row {target.row}, column {target.col}, was pushed before.",
                "Push each target once.",
            )
        self._taken.add(target.index)
        position = Position(target.x_um, target.y_um, z_um)
        rejected = verdict is Verdict.REJECTED
        reached = Position(offer.get("x_um", target.x_um), offer.get("y_um", target.y_um), z_um)
        return Tile(
            target.index, target.row, target.col, position, None if rejected else reached, None, None, verdict,
            reason="rejected by its producer" if rejected else "",
        )  # fmt: skip

    def withdraw(self, index: int) -> None:
        """Give a target back whose pixels did not arrive."""
        self._taken.discard(index)

    def _target(self, place: int | list[int]) -> Target:
        plan = self._plan
        if isinstance(place, int):
            if 0 <= place < len(plan):
                return plan.target(place)
        elif len(place) == 2 and 0 <= place[0] < plan.rows and 0 <= place[1] < plan.cols:
            return plan.target(plan.index_at(*place))
        raise UsageError(
            f"The plan has no target {place}.",
            f"There are {len(plan)} targets from 0 on, in {plan.rows} rows and {plan.cols} columns.",
        )

    def _nearest(self, x_um: float, y_um: float) -> Target:
        plan, first = self._plan, self._plan.target(0)
        if not (math.isfinite(x_um) and math.isfinite(y_um)):
            raise UsageError(f"The position is ({x_um}, {y_um}) um.", "Give finite numbers.")
        step_x_um = (plan.tile_width_px - plan.overlap_px) * plan.pixel_size_um
        step_y_um = (plan.tile_height_px - plan.overlap_px) * plan.pixel_size_um
        row = min(max(0, round((y_um - first.y_um) / step_y_um)), plan.rows - 1)
        col = min(max(0, round((x_um - first.x_um) / step_x_um)), plan.cols - 1)
        target = plan.target(plan.index_at(row, col))
        away_um = math.hypot(x_um - target.x_um, y_um - target.y_um)
        if away_um > self._tolerance_um:
            raise UsageError(
                f"No target lies at ({x_um:g}, {y_um:g}) um: the nearest, {target.index}, is {away_um:.1f} um away; "
                f"{self._tolerance_um:g} um are allowed.",
                "Push at the plan's targets, or set stage.error_um to the stage's repeatability.",
            )
        return target

    def _check_pixels(self, verdict: Verdict, shape: tuple[int, ...], dtype: str) -> None:
        if verdict is Verdict.REJECTED:
            if dtype:
                raise UsageError("A rejected tile has no pixels.", "Push None, or another verdict.")
        elif not dtype:
            raise UsageError(f"There are no pixels; a tile that is {verdict} has some.", "Push a rejected tile.")
        elif shape != self.shape or dtype != self.dtype.newbyteorder("=").str:
            raise UsageError(
                f"The pixels are {dtype} of shape {shape}; {self.dtype.str} of shape {self.shape} is expected.",
                "The plan sets height and width, camera.channels and camera.bits the rest.",
            )
