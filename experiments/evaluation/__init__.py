"""How ``evaluate`` and ``compare`` work: what is judged, privacy, slices, differences, and their pages."""
