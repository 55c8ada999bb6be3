"""Laplace's equation: the known is its boundary, the unknown is not read."""

import conftest
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imagebart.editing.harmonic import harmonic

SIDES = st.integers(1, 12)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_unknown(height: int, width: int, seed: int, part: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 1, height, width, generator=generator) < part


def solved(x: torch.Tensor, unknown: np.ndarray) -> np.ndarray:
    """u by the linear equations themselves: an unknown pixel is the mean of its neighbours."""
    H, W = unknown.shape
    equations = np.eye(H * W)
    for i, j in zip(*unknown.nonzero(), strict=True):
        beside = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        beside = [(r, c) for r, c in beside if 0 <= r < H and 0 <= c < W]
        for r, c in beside:
            equations[i * W + j, r * W + c] = -1 / len(beside)
    right = np.where(unknown, 0, x[0].double().numpy()).reshape(3, -1)
    return np.linalg.solve(equations, right.T).T.reshape(3, H, W)


@given(SIDES, SIDES, st.integers(0, 99), st.floats(0.1, 0.9))
def test_it_solves_laplaces_equation(height, width, seed, part):
    x, unknown = noise(height, width), random_unknown(height, width, seed, part)
    if unknown.all():
        return
    away = np.abs(harmonic(x, unknown)[0].numpy() - solved(x, unknown[0, 0].numpy()))
    assert away.max() < 0.3 and away.mean() < 0.06  # of numbers with a deviation of 1


@given(SIDES, SIDES, st.integers(0, 99), st.floats(0.1, 0.9))
def test_the_unknown_is_not_read_and_the_known_stays(height, width, seed, part):
    x, unknown = noise(height, width), random_unknown(height, width, seed, part)
    got = harmonic(x, unknown)
    assert torch.equal(got, harmonic(x.masked_fill(unknown, torch.nan), unknown))
    known = (~unknown).expand_as(x)
    assert torch.equal(got[known], x[known])
    if known.any():
        low, high = x[known].min(), x[known].max()
        assert got.min() >= low - 1e-5 and got.max() <= high + 1e-5


@pytest.mark.parametrize("size", [(128, 128), (90, 61)])
def test_a_ramp_goes_on(size):
    """What is linear is harmonic, however large the part that is not known."""
    H, W = size
    x = (torch.arange(H)[:, None] / H + torch.arange(W) / W).expand(1, 3, H, W)
    unknown = torch.zeros(1, 1, H, W, dtype=torch.bool)
    unknown[..., H // 4 : 3 * H // 4, W // 4 : 3 * W // 4] = True
    torch.testing.assert_close(harmonic(x, unknown), x, atol=0.03, rtol=0)


def test_where_nothing_is_known_it_is_nothing():
    x = noise(5, 7)
    assert not harmonic(x, torch.ones(1, 1, 5, 7, dtype=torch.bool)).any()
    assert torch.equal(harmonic(x, torch.zeros(1, 1, 5, 7, dtype=torch.bool)), x)


@pytest.mark.parametrize("turn", ["first", "second"])
def test_shapes_are_checked_in_every_test(turn, monkeypatch):
    """In its first calls, whatever the test before it has used up."""
    with pytest.raises(TypeCheckError):
        harmonic(torch.zeros(3, 4), torch.ones(1, 1, 3, 4, dtype=torch.bool))
    monkeypatch.setattr(conftest, "checks_left", 1)
    harmonic(torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4, dtype=torch.bool))
    assert jaxtyping.config.jaxtyping_disable
