"""What a finished scan says of itself: `report.json`, `report.html`, `thumbnail.png`."""

from edge_scanner.report.report import ScanReport, write_report

__all__ = ["ScanReport", "write_report"]
