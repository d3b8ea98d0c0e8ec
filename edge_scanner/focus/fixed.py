"""`focus.mode = "off"`: trust the prediction, take one frame."""

from __future__ import annotations

from edge_scanner.focus.method import FocusOutcome, Snap
from edge_scanner.focus.score import sharpness
from edge_scanner.tile import FocusResult, Frame


class FixedFocus:
    """One frame at the predicted z; nothing is measured."""

    def run(self, z_start_um: float, snap: Snap, surface_known: bool, first: Frame | None = None) -> FocusOutcome:  # noqa: ARG002
        """Take one frame at the predicted z; see `Focus.run`."""
        frame = first if first is not None else snap(z_start_um)
        result = FocusResult(sharpness(frame.pixels), z_start_um, frames=1, in_focus=False, measured=False)
        return FocusOutcome(frame, result)
