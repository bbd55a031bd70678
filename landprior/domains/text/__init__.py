"""Documents with a coarse label, sorted into the fine classes below it [R, text experiment]; ``docs/text.md``."""
