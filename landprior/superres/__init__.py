"""Label super-resolution: statistics matching, epitomes and their baselines (to come)."""
