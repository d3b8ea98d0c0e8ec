"""Focus: scores of a frame, the focus surface, and the methods that focus a tile."""

from __future__ import annotations

from edge_scanner.config import Config
from edge_scanner.focus.autofocus import ModelFocus
from edge_scanner.focus.calibration import named_focus_calibration
from edge_scanner.focus.classical import ClassicalFocus
from edge_scanner.focus.fixed import FixedFocus
from edge_scanner.focus.method import Focus, FocusOutcome, Snap
from edge_scanner.focus.model import ModelFile

__all__ = ["Focus", "FocusOutcome", "Snap", "check_focus", "make_focus"]


def check_focus(config: Config) -> str:
    """Return, in words, how the focus model was calibrated; nothing is loaded.

    Raises
    ------
    ConfigError
        No readable model, or an objective that it was not measured with.
    SourceError
        A calibration that is missing, damaged or for another objective or model.
    """
    if config.focus.mode != "model":
        return "not needed"
    file = ModelFile.open(config.focus.model)
    file.require(config.optics)
    found = named_focus_calibration(config, file)
    return "none named; the model as it was trained" if found is None else f"measured {found.measured}"


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
