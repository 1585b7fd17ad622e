"""What leaves the house: image files, exports, model cards, bundles."""
