"""Classifying documents with a coarse label into the fine classes below it [R 4.5]; ``docs/weak-labels/text.md``."""
