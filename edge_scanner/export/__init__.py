"""Pyramidal OME-TIFF out of a store, by copying encoded chunks."""
