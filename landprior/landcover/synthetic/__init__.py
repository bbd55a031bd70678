"""Synthetic places: a scene with its layers, and the demo."""
