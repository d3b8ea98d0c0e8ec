"""Export of a store to a pyramidal OME-TIFF that every reader sees whole."""

from edge_scanner.export.ome_tiff import ExportReport, to_ome_tiff

__all__ = ["ExportReport", "to_ome_tiff"]
