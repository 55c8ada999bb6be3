"""Rotary positions in two dimensions: queries and keys turn by the place of their token.

A head's d dimensions are d/2 planes. A place (r, c) turns the first half of the planes by ω·r, the
others by ω·c, with frequencies ω = BASE^(-4i/d), i = 0 .. d/4 - 1. Scores then depend on how far
two places are apart, and not on where they are:

    (R(p) q) · (R(p') k) = q · (R(p' - p) k)

(RoFormer, Su et al. 2021, along both axes of the token grid.)
"""

import torch
from torch import Tensor

from imagebart.notation import Float, Int

BASE = 100.0
"""The slowest planes turn by about 1/BASE a place: less than one turn over any grid used here."""

Places = Int[Tensor, "_ 2"]
"""Row and column of every slot of a sequence. (0, 0) turns nothing: what lies nowhere is there."""

Rotation = Float[Tensor, "2 *_ d"]
"""cos and sin of each slot's angles, laid out for `rotate`; an axis of one stands for the heads."""


def rotation(places: Places, head_width: int) -> Float[Tensor, "2 _ 1 d"]:
    """The turns of slots at `places`; `head_width` must be a multiple of 4."""
    quarter = head_width // 4
    omega = BASE ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = (places[:, None, :, None] * omega).flatten(2).repeat(1, 1, 2)
    sign = torch.ones(head_width, dtype=torch.float64)
    sign[: head_width // 2] = -1
    return torch.stack([angles.cos(), sign * angles.sin()]).float()


def rotate(x: Float[Tensor, "b s heads d"], turns: Rotation) -> Float[Tensor, "b s heads d"]:
    """R x, where plane i is spanned by the dimensions i and i + d/2.

    Products and a sum that round one by one, so that a row's numbers do not depend on its company.
    """
    cos, sin = turns.to(x.dtype)
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def grid_places(grid: tuple[int, int]) -> Places:
    """Row and column of the tokens of a grid, in raster order."""
    h, w = grid
    return torch.cartesian_prod(torch.arange(h), torch.arange(w)).reshape(h * w, 2)
