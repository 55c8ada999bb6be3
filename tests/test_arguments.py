"""What a caller gives: whole numbers, and one of a thing or several."""

import numpy as np
import pytest
import torch

from imagebart.arguments import as_int, as_real, each_of


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


@pytest.mark.parametrize("value", [0, 1.5, np.float32(2), 2**70])
def test_real_numbers_pass_as_they_are(value):
    assert as_real(value, "x") is value


NO_NUMBERS = (True, False, "1", None, 1j, [1.0], -1e-9, np.nan, np.inf, 10**400)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_all_else_is_no_real_number(value):
    with pytest.raises(ValueError, match="x must be a number, at least 0, got "):
        as_real(value, "x")


def test_a_bound_may_be_exclusive():
    assert as_real(0, "x", 0, 1) == 0
    with pytest.raises(ValueError, match=r"x must lie in \(0, 1\], got 0"):
        as_real(0, "x", 0, 1, exclusive=True)


def test_one_is_for_all_and_several_are_for_one_each():
    numbers = np.array([3, 4])
    assert each_of(numbers, 2, int | str, "classes") == [3, 4]
    assert each_of("night", 2, str, "prompt") == ["night"] * 2
    assert each_of(None, 2, str, "prompt") == [None] * 2
    assert each_of([numbers, None], 2, np.ndarray, "semantic_map")[0] is numbers


class Listed(torch.Tensor):
    """A map of torch's, which nobody makes a list of."""

    def tolist(self):
        raise AssertionError("a list of all kinds")


@pytest.mark.parametrize(
    "given, kind, says",
    [
        (5, str, "x must be text: one, or 2 of them, got 5"),
        (1.5, int | str, "x must be a whole number or text: one, or 2 of them, got 1.5"),
        (["a"] * 99, str, "x must be text: one, or 2 of them, got list of 99"),
        (
            Listed(torch.zeros(8, 8)),
            np.ndarray,
            r"x must be a NumPy array H×W: one, or 2 of them, got Listed of shape \(8, 8\)",
        ),
        ([Listed(torch.zeros(8, 8))] * 2, np.ndarray, "x must be a NumPy array H×W: one, or 2 of"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_a_short_sentence(given, kind, says):
    with pytest.raises(ValueError, match=says) as raised:
        each_of(given, 2, kind, "x")
    assert len(str(raised.value)) < 150
