"""Calibration: flat field, stage matrix and backlash, by command or before a scan."""

from edge_scanner.calibrate.prepare import (
    Prepared,
    bright_place,
    named_flat_field,
    named_stage_calibration,
    prepare,
)

__all__ = ["Prepared", "bright_place", "named_flat_field", "named_stage_calibration", "prepare"]
