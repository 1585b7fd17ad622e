"""Choices: configurations, the verbs that act on them, and the papers' studies; may import everything."""
