"""Benchmarks of accuracy and speed: each module is a command, ``python -m benchmarks.<name>``."""
