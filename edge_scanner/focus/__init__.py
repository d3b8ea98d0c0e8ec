"""Focus: scores of a frame, the focus surface, and the methods that focus a tile."""

from __future__ import annotations

from edge_scanner.config import Config
from edge_scanner.focus.autofocus import ModelFocus
from edge_scanner.focus.classical import ClassicalFocus
from edge_scanner.focus.fixed import FixedFocus
from edge_scanner.focus.method import Focus, FocusOutcome, Snap

__all__ = ["Focus", "FocusOutcome", "Snap", "make_focus"]


def make_focus(config: Config) -> Focus:
    """Return the method that `focus.mode` names.

    Raises
    ------
    ConfigError
        When that method is not installed or does not suit the camera.
    """
    match config.focus.mode:
        case "classical":
            return ClassicalFocus(config)
        case "off":
            return FixedFocus()
        case "model":
            return ModelFocus(config)
