"""Checksums of what the commands write, to compare two versions: ``python -m benchmarks.same_maps``."""
