"""Rankings: only the order of the items in each pair is known [R section 4.2]."""
