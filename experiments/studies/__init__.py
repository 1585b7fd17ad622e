"""Evaluations that the README's tables come from: each prints one."""
