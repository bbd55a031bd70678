"""Label super-resolution: statistics matching, epitomes, and baselines for comparison."""
