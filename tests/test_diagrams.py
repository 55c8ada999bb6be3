"""Diagrams show what they are given; attention maps are the weights that the decoder uses."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from imagebart import diagrams, show


def test_a_chain_shows_every_scale():
    colours = [(200, 20, 30), (20, 190, 40), (30, 40, 210), (250, 250, 0)]
    drawn = np.asarray(
        diagrams.chain_of_scales([Image.new("RGB", (8, 8), c) for c in colours]).image
    )
    columns = [(drawn == colour).all(2).any(0).nonzero()[0] for colour in colours]
    assert all(len(found) > 50 for found in columns)
    assert all(a.max() < b.min() for a, b in pairwise(columns))


def test_a_chain_has_a_step():
    with pytest.raises(ValueError, match="x_0, x_1 and x_2 at least, got 2 pictures"):
        diagrams.chain_of_scales([Image.new("RGB", (8, 8))] * 2)


def test_encoder_and_decoder_shows_its_masks():
    image = np.asarray(diagrams.encoder_and_decoder(n=4).image)
    areas = {}
    for name in (diagrams.GREEN, diagrams.BLUE, diagrams.ORANGE):
        colour = tuple(bytes.fromhex(name[1:]))
        columns = (image == colour).all(2).sum(0)
        areas[name] = columns[image.shape[1] // 2 :].sum()
    full = areas[diagrams.GREEN]
    assert full > 5000
    assert areas[diagrams.BLUE] / full == pytest.approx(10 / 16, abs=0.03)
    assert areas[diagrams.ORANGE] / full == pytest.approx(1, abs=0.03)


def test_attention_is_that_which_the_decoder_uses(make_denoiser):
    denoiser = make_denoiser(2)
    x_prev, x_t = torch.randint(12, (2, 1, 16), generator=torch.Generator().manual_seed(0))
    block, seen = denoiser.decoder.blocks[0], {}
    block.cross.register_forward_hook(lambda _, given, out: seen.update(given=given, out=out))
    weights = diagrams.cross_attention(denoiser, x_prev, x_t)
    assert weights.shape == (len(denoiser.decoder.blocks), block.cross.heads, 16, 16)
    assert (weights >= 0).all() and (weights.sum(-1) < 1 + 1e-5).all()
    memory, heads = seen["given"][1], block.cross.heads
    v = block.cross.kv(memory)[0].chunk(2, dim=-1)[1].reshape(17, heads, -1)
    rest = (1 - weights[0].sum(-1))[..., None]  # of the start vector, the only other slot
    both = torch.cat([rest, weights[0]], dim=-1)
    mixed = torch.einsum("hsm,mhd->shd", both, v).reshape(16, -1)
    torch.testing.assert_close(block.cross.out(mixed), seen["out"][0], atol=1e-4, rtol=1e-4)


def test_attention_is_seen_in_the_networks_own_type(make_denoiser):
    denoiser = make_denoiser(2).to(torch.bfloat16)
    weights = diagrams.cross_attention(denoiser, *torch.zeros(2, 1, 16, dtype=torch.int64))
    assert weights.dtype == torch.bfloat16 and weights.isfinite().all()


def test_attention_needs_an_encoder(make_denoiser):
    with pytest.raises(ValueError, match="encoder and one image, got t = 3, 1 images"):
        diagrams.cross_attention(make_denoiser(3), *torch.zeros(2, 1, 16, dtype=torch.int64))


def test_no_hook_is_left(make_denoiser):
    denoiser = make_denoiser(2)
    diagrams.cross_attention(denoiser, *torch.zeros(2, 1, 16, dtype=torch.int64))
    assert not any(module._forward_pre_hooks for module in denoiser.modules())


def test_drawing_leaves_no_figure_in_pyplot():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert isinstance(diagrams.encoder_and_decoder(), show.Picture)
    assert plt.get_fignums() == before
