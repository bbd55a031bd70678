"""Rankings: of pairs of items only is known which is the greater [R section 4.2]."""
