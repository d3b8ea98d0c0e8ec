"""Calibration: flat field, stage matrix and backlash, by command or before a scan."""

from edge_scanner.calibrate.prepare import Prepared, prepare

__all__ = ["Prepared", "prepare"]
