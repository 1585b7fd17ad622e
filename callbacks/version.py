"""Mirage's version, for the fingerprints of scores."""

from importlib.metadata import PackageNotFoundError, version


def code_version() -> str:
    """Return the version of Mirage, or "unknown" where it is not installed."""
    try:
        return version("mirage-gan")
    except PackageNotFoundError:
        return "unknown"  # used from a folder, without installation
