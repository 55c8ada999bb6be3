"""What a caller gives: whole and real numbers; one of a thing, or several."""

import math
import operator
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from numbers import Real
from types import UnionType
from typing import Any, TypeGuard, get_args

import numpy as np


def as_int(value: Any, name: str, least: float = 0, most: float | None = None) -> int:
    """The value as an int, NumPy's among them; ValueError unless it is a whole number from `least`
    to `most`. True is none, and neither is 1.0."""
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None or number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {bounds}, got {value!r:.60}")
    return number


def as_real(
    value: float, name: str, least: float = 0, most: float | None = None, exclusive: bool = False
) -> float:
    """The value; ValueError unless it is a finite number from `least` (more than it if `exclusive`)
    to `most`. True is none."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # of a whole number beyond all real ones
            number = float(value)
    fits = least <= number <= (math.inf if most is None else most) and number < math.inf
    if not fits or (exclusive and value == least):
        bracket = "(" if exclusive else "["
        bounds = f"be a number, at least {least}"
        if most is not None:
            bounds = f"lie in {bracket}{least}, {most}]"
        raise ValueError(f"{name} must {bounds}, got {value!r:.60}")
    return value


def shown(text: str, most: int = 100) -> str:
    """A text of a file, as an error may quote it: one printable line, at most `most` characters.

    Control characters, which a terminal would obey, are written as escapes.
    """
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def quoted(value: Any, most: int = 60) -> str:
    """A value, as an error may quote it; what it is where that would be long."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    if len(text) <= most:
        return text
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else text[:most]


def to_builtin(value, kind: type | UnionType):
    """NumPy's and torch's numbers and arrays as Python's, unless arrays are what is wanted."""
    if kind is np.ndarray or not hasattr(value, "tolist") or isinstance(value, kind):
        return value
    return value.tolist()


def is_several(value) -> TypeGuard[Sequence]:
    """Whether it is a list, a tuple, a range … and not one number or text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


CALLED: dict[Any, str] = {int: "a whole number", str: "text", np.ndarray: "a NumPy array H×W"}
"""What one value is called in an error."""


def each_of(given, batch: int, kind: type | UnionType, name: str) -> list:
    """One given for all or one each, as a list of `batch`; nothing given is None for each.

    ValueError for another number of them, and for one that is not of the kind.
    """
    given = to_builtin(given, kind)
    if given is None or isinstance(given, kind):
        return [given] * batch
    values = [to_builtin(one, kind) for one in given] if is_several(given) else []
    if len(values) != batch or not all(one is None or isinstance(one, kind) for one in values):
        kinds: Sequence[Any] = get_args(kind) or [kind]
        what = " or ".join(CALLED.get(one, one.__name__) for one in kinds)
        raise ValueError(f"{name} must be {what}: one, or {batch} of them, got {quoted(given)}")
    return values


WRAPPERS = ("imagebart", "jaxtyping", "torch")
"""Packages whose functions may lie between a caller and what warns."""


def warn_caller(message: str) -> None:
    """Warn at the line of the caller, the innermost one outside of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in WRAPPERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
