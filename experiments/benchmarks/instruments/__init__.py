"""Trials of the instruments themselves: what an extractor, a score, a health check sees."""
