"""Experiments: whole tables of rows by regions, from a YAML file, resumable, with a report."""
