"""Partial labels: of each item only a set of candidate classes is known [R section 4.1]."""
