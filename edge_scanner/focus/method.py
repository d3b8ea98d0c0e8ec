"""The focus contract: what acquisition asks of a method, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_scanner.tile import FocusResult, Frame

Snap = Callable[[float], Frame]
"""Moves z there (micrometres, always from below), waits until all is still, and returns a frame taken there."""


@dataclass(frozen=True, slots=True)
class FocusOutcome:
    """The frame that is kept and how it was found; `result.z_um` is where it was taken."""

    frame: Frame
    result: FocusResult


class Focus(Protocol):
    """A way to focus one tile."""

    def run(self, z_start_um: float, snap: Snap, surface_known: bool, first: Frame | None = None) -> FocusOutcome:
        """Focus the tile under the objective.

        Parameters
        ----------
        z_start_um : float
            Predicted z.
        snap : callable
            Takes a frame at a z; its errors (`DeviceError`, `AbortedError`) pass through.
        surface_known : bool
            The prediction comes from measured neighbours; False: it is a mere starting point.
        first : Frame, optional
            A frame already taken at `z_start_um`, which then costs no exposure here.

        Returns
        -------
        FocusOutcome
            `result.frames` counts every frame judged, `first` included. A method that cannot tell says so in
            `result.measured` and `result.in_focus`; that is no error.
        """
        ...
