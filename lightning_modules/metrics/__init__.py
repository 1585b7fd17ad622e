"""Instruments: images or features in, numbers out; no input/output, no lightning."""
