"""Whole numbers that a caller gives."""


def whole(value: int, name: str, least: int = 0) -> int:
    """The value; ValueError unless it is a whole number (True is none) and at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
    return value
