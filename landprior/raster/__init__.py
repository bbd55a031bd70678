"""Grids, windows, COG writing and class schemes. Knows rasters, knows no networks (no torch)."""
