"""Sweeps: many runs from one search space. ``experiments.sweep`` is the command line."""
