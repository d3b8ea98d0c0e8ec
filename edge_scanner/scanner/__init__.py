"""The composition root: builds the parts, owns the threads of the scan pipeline, runs one scan at a time."""

from edge_scanner.scanner.scanner import Scanner

__all__ = ["Scanner"]
