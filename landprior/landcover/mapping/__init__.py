"""Mapping: from a model and an image of any size to class maps, probabilities and pictures."""
