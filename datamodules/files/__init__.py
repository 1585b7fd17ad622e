"""Files, folders and the cache."""
