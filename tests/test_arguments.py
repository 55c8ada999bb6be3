"""Whole numbers that a caller gives."""

import numpy as np
import pytest

from imagebart.arguments import as_int


@pytest.mark.parametrize("value, least", [(0, 0), (1, 1), (2**70, 3), (np.int64(5), 0)])
def test_whole_numbers_pass_as_ints(value, least):
    assert as_int(value, "n", least) == value
    assert type(as_int(value, "n", least)) is int


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [1], -1, np.bool_(True)])
def test_all_else_is_refused(value):
    with pytest.raises(ValueError, match="n must be a whole number, at least 0, got "):
        as_int(value, "n")


def test_the_bounds_are_said():
    with pytest.raises(ValueError, match="candidates must be a whole number, at least 4, got 3"):
        as_int(3, "candidates", 4)
    with pytest.raises(ValueError, match="t must be a whole number, from 1 to 4, got 5"):
        as_int(5, "t", 1, 4)
    assert as_int(4, "t", 1, 4) == 4
