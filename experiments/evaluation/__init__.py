"""How ``evaluate`` and ``compare`` work: sets of images, their vectors, resampling, scores, pages."""
