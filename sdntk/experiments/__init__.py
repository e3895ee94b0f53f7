"""Experiments: what a command runs and records."""
