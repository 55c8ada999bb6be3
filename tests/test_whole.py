"""Whole numbers that a caller gives."""

import pytest

from imagebart.whole import whole


@pytest.mark.parametrize("value, least", [(0, 0), (1, 1), (2**70, 3)])
def test_whole_numbers_pass(value, least):
    assert whole(value, "n", least) == value


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [1], -1])
def test_all_else_is_refused(value):
    with pytest.raises(ValueError, match="n must be a whole number, at least 0, got "):
        whole(value, "n")


def test_the_least_is_said():
    with pytest.raises(ValueError, match="candidates must be a whole number, at least 4, got 3"):
        whole(3, "candidates", 4)
