"""Images to files."""
