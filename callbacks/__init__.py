"""Callbacks: what watches a training run, one per file; may import lightning_modules."""
