"""Label super-resolution: statistics matching, epitomes, and the baselines they are measured against."""
