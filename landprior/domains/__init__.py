"""The paper's other kinds of weak labels, on the same core: partial labels, ranks, coarse text labels."""
