"""The other domains of the paper, each a module on the same core (to come)."""
