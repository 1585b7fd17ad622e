"""Data sets and how they are read; imports none of the other packages."""
