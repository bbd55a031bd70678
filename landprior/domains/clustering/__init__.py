"""Clustering an image by its own neighbourhoods, and assigning classes to clusters with a few points."""
