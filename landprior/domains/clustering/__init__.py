"""Unsupervised clustering of an image by its own neighbourhoods, and classes for the clusters from few points."""
