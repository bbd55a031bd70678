"""Many tiles on many machines: plans, runs of them, what comes of it."""
