"""Configuration files: reading, checking, building objects, and what may not be shown."""
