"""Grids, windows, COG writing and class schemes. Does not import torch."""
