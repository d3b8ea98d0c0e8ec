"""OME-Zarr store: sharded, grown by append, readable at any moment of the scan."""
