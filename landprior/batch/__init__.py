"""Many tiles on many machines (to come)."""
