"""Many tiles on many machines: plans, their runs and results."""
