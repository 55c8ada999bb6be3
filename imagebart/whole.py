"""Whole numbers that a caller gives."""

import operator


def whole(value: int, name: str, least: int = 0, most: int | None = None) -> int:
    """The value as an int, NumPy's among them; ValueError unless it is a whole number from `least`
    to `most`. True is none, and neither is 1.0."""
    number = as_int(value)
    if number is None or number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {bounds}, got {value!r:.60}")
    return number


def as_int(value: object) -> int | None:
    """The value as an int if it is a whole number, else None."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
