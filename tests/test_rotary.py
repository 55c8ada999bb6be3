"""Rotary positions: scores that know how far two places are apart."""

from itertools import pairwise

import pytest
import torch
from conftest import new_model

from imagebart.conditions import ConditionShape, text_shape
from imagebart.denoiser import DenoiserConfig, decoder_places, encoder_places
from imagebart.rotary import grid_places, rotate, rotation


def scores(shift: tuple[int, int], d: int = 8) -> torch.Tensor:
    """q · k of one query and one key that stand at each two places of a 3×4 grid, shifted."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, d, generator=generator).expand(2, 1, 12, 1, d)
    turns = rotation(grid_places((3, 4)) + torch.tensor(shift), d)
    return torch.einsum("bshd,bthd->st", rotate(q, turns), rotate(k, turns))


def test_scores_depend_on_relative_places_only():
    for shift in ((5, 0), (0, 5), (2, 7)):
        torch.testing.assert_close(scores(shift), scores((0, 0)))


def test_scores_differ_with_every_relative_place():
    here = grid_places((3, 4))
    apart = [tuple(place) for place in (here[:, None] - here).flatten(0, 1).tolist()]
    score = dict(zip(apart, scores((0, 0)).flatten().tolist(), strict=True))
    values = sorted(score.values())
    assert len(values) == 5 * 7 and min(b - a for a, b in pairwise(values)) > 1e-4


def test_turning_keeps_lengths_and_the_origin():
    x = torch.randn(2, 12, 3, 16, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotation(grid_places((3, 4)), 16))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0]) and not torch.equal(turned[:, 1], x[:, 1])


def test_turns_stay_exact_whatever_the_weights_become():
    for model in (new_model(T=3, rotary=True), new_model(T=3, rotary=True, joint=True)):
        tables = [one.clone() for name, one in model.named_buffers() if "turns" in name]
        assert len(tables) >= 3
        model.to(torch.bfloat16).float()
        after = [one for name, one in model.named_buffers() if "turns" in name]
        assert all(map(torch.equal, after, tables))


@pytest.mark.parametrize("sees_x_t", [True, False])
def test_a_condition_lies_nowhere_and_a_map_on_the_grid(sees_x_t):
    takes = {"class": ConditionShape(5, 1), "text": text_shape(4), "map": ConditionShape(7, 2 * 3)}
    config = DenoiserConfig(grid=(2, 3), conditions=takes, rotary=True)
    grid, nowhere = grid_places((2, 3)), torch.zeros(5, 2, dtype=torch.int64)
    said = torch.cat([nowhere, grid])
    assert torch.equal(encoder_places(config), torch.cat([said, nowhere[:1], grid]))
    expected = grid if sees_x_t else torch.cat([said, grid])
    assert torch.equal(decoder_places(config, sees_x_t), expected)
