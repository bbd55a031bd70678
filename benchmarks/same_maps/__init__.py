"""Checksums of the commands' output, to compare two versions: ``python -m benchmarks.same_maps``."""
