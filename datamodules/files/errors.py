"""What data sets raise for users."""


class DataError(Exception):
    """Something is wrong with the data that the user named; the message says what, where and what to do."""


class UnreadableImageError(DataError):
    """A file that cannot be used; the message says which and why."""
