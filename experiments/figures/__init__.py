"""Figures made of tensors."""
