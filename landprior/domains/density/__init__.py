"""Pixels from labels that are known only as a density class of each block (R, appendix F.2)."""
