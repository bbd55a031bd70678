"""Partial labels: only a set of candidate classes is known for each item [R section 4.1]."""
