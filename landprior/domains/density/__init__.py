"""Mapping pixels from labels that give only a density class for each block (R, appendix F.2)."""
