"""Adapting a model to a place with a few labelled points."""
