"""Priors: from coarse layers, cooccurrence and labelled points to a belief over classes per pixel."""
