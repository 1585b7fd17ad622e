"""Pixels and headers of DICOM and picture files."""
