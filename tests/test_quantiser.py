"""Another quantiser is one class: finite scalar quantisation learns, shrinks and is saved."""

import pytest
import torch

from imagebart.folders import load_vqgan, save_vqgan
from imagebart.quantiser import QUANTISERS, Quantiser
from imagebart.vqgan import VQGAN, VQGANConfig

SHAPE = dict(K=5**3, embed_dim=3, quantiser="fsq", image_size=32, z_channels=32, channels=32)
SHAPE |= dict(blocks=1, multipliers=(1, 1), attention_levels=(), mid_attention=False, patch=4)


class FSQ(Quantiser):
    """Finite scalar quantisation: each channel is bounded and rounded to one of L levels.

    K = L^dim; the codebook is the grid of all levels, so nothing but the encoder learns.
    """

    def __init__(self, K: int, dim: int, commitment: float):
        super().__init__(K)
        self.levels = round(K ** (1 / dim))
        self.register_buffer("place", self.levels ** torch.arange(dim), persistent=False)

    def bounded(self, z):
        return (self.levels - 1) * torch.sigmoid(z)

    def nearest(self, z):
        return torch.einsum("bchw,c->bhw", self.bounded(z).round().long(), self.place)

    def vectors(self):
        digits = torch.arange(self.size)[:, None] // self.place % self.levels
        return 2 * digits / (self.levels - 1) - 1

    def forward(self, z):
        level = self.bounded(z)
        level = level + (level.round() - level).detach()
        return 2 * level / (self.levels - 1) - 1, z.new_zeros(()), self.nearest(z)


@pytest.fixture
def vqgan(monkeypatch):
    monkeypatch.setitem(QUANTISERS, "fsq", FSQ)
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(**SHAPE))


def test_a_few_steps_with_another_quantiser_learn(vqgan):
    """All that training calls: forward, its loss, revival; the error falls by a third."""
    images = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32) * 2 - 1
    optimiser, errors = torch.optim.Adam(vqgan.parameters(), lr=3e-3), []
    for _ in range(30):
        back, loss, code = vqgan(images)
        error = (back - images).abs().mean()
        optimiser.zero_grad()
        (error + loss).backward()
        optimiser.step()
        errors.append(error.item())
    dead = torch.bincount(code.flatten(), minlength=vqgan.quantiser.size) == 0
    vqgan.quantiser.revive(dead, vqgan.latents(images), torch.Generator())
    assert errors[-1] < 2 / 3 * errors[0]
    assert any(p.grad.abs().sum() > 0 for p in vqgan.encoder.parameters())


def test_another_quantiser_shrinks_and_comes_back_from_a_folder(vqgan, tmp_path):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vqgan.quant_conv.weight.data *= 30  # latents that differ
    used = vqgan.encode(image).unique()
    assert 1 < len(used) < vqgan.K == 125
    z_q, _, code = vqgan.quantiser(vqgan.latents(image))
    torch.testing.assert_close(z_q, vqgan.quantiser.lookup(code))
    before = vqgan.decode(vqgan.encode(image))
    vqgan.quantiser.shrink(used, torch.Generator().manual_seed(0))
    save_vqgan(vqgan, tmp_path)
    back = load_vqgan(tmp_path)
    assert back.config == vqgan.config and isinstance(back.quantiser, FSQ)
    assert len(used) == back.K and back.quantiser.shrunk
    assert back.quantiser.token_vectors().shape == (len(used), 3)
    assert torch.equal(back.encode(image), vqgan.encode(image))
    assert torch.equal(back.decode(back.encode(image)), before)


def test_every_row_makes_a_quantiser():
    for name, kind in QUANTISERS.items():
        quantiser = kind(16, 2, 0.25)
        grid = torch.arange(16).reshape(1, 4, 4)
        assert isinstance(quantiser, Quantiser) and quantiser.K == quantiser.size == 16, name
        assert torch.equal(quantiser.encode(quantiser.lookup(grid)), grid)
        assert torch.equal(quantiser.lookup(grid)[0].flatten(1).T, quantiser.token_vectors())
