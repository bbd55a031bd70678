"""Experiments: whole tables of rows by regions, defined in YAML; resumable, with a report."""
