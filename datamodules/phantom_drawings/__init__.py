"""Phantoms drawn by code, one file per kind: pure numpy functions (index, height, width) -> Phantom.

They carry no patient data and no clinical meaning. Each image is a function of its index alone. All parameters of the
anatomy are drawn in relative units and never depend on the raster, so that one index at 64x64 and at 256x256 is one
image at two resolutions; only the pixel noise differs. Lengths are in units named by each file, y points down.
"""
