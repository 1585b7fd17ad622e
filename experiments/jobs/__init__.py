"""Runs as child processes, for sweeps and papers."""
