"""Accuracy on the synthetic scene and on real windows."""
