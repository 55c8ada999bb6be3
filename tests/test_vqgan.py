"""Compression: what is rounded, what the gradient sees, and which images fit."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebart.folders import SHIPPED, load_vqgan
from imagebart.known_pixels import TwoConvs, known_pixels
from imagebart.presets import find_preset
from imagebart.quantiser import VectorQuantiser
from imagebart.vqgan import VQGAN, Finish, VQGANConfig, norm


@pytest.fixture(scope="module")
def vqgan(make_vqgan):
    return make_vqgan()


def make_quantiser(K=7, dim=3, **options) -> VectorQuantiser:
    quantiser = VectorQuantiser(K, dim, 0.25, **options)
    weight = torch.randn(K, dim, generator=torch.Generator().manual_seed(0))
    quantiser.codebook.weight.data.copy_(weight)
    return quantiser


def latents(b=2, c=3, h=4, w=5, seed=1) -> torch.Tensor:
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed))


# ── rounding to codes ─────────────────────────────────────────────────────────────────────────


@settings(max_examples=50)
@given(K=st.integers(1, 20), dim=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_nearest_code_is_the_nearest(K, dim, seed):
    quantiser = make_quantiser(K, dim)
    z = latents(c=dim, seed=seed)
    distance = (z[:, None] - quantiser.codebook.weight[:, :, None, None]).square().sum(2)
    chosen = distance.gather(1, quantiser.encode(z)[:, None])
    assert (chosen[:, 0] <= distance.amin(1) + 1e-5).all()


def test_a_code_is_nearest_to_itself():
    quantiser = make_quantiser()
    grid = torch.arange(7).reshape(1, 1, 7)
    assert torch.equal(quantiser.encode(quantiser.lookup(grid).detach()), grid)


def test_lookup_lays_codes_out_as_the_grid_is():
    quantiser, grid = make_quantiser(), torch.tensor([[[1, 4], [0, 6], [2, 2]]])
    e = quantiser.lookup(grid)
    assert e.shape == (1, 3, 3, 2)
    for i in range(3):
        for j in range(2):
            assert torch.equal(e[0, :, i, j], quantiser.codebook.weight[grid[0, i, j]])


def test_tokens_do_not_depend_on_autocast():
    """A product in bfloat16 would take another of 512 codes for one latent in fifty."""
    quantiser, z = make_quantiser(512, 8), latents(c=8, h=32, w=32)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = quantiser.encode(z)
    assert torch.equal(tokens, quantiser.encode(z))


# ── the straight-through gradient ─────────────────────────────────────────────────────────────


def test_gradient_passes_straight_through():
    quantiser, z = make_quantiser(), latents().requires_grad_()
    z_q, _, _ = quantiser(z)
    downstream = latents(seed=2)
    (gradient,) = torch.autograd.grad((z_q * downstream).sum(), z)
    assert torch.equal(gradient, downstream)


def test_what_goes_forward_is_the_code():
    quantiser, z = make_quantiser(), latents()
    z_q, _, code = quantiser(z)
    assert torch.equal(code, quantiser.nearest(z))
    torch.testing.assert_close(z_q, quantiser.lookup(code), rtol=0, atol=1e-6)


def test_the_codebook_loss_pulls_each_side_with_its_weight():
    """‖sg[z] - e‖² moves the codes, commitment · ‖z - sg[e]‖² the encoder."""
    quantiser, z = make_quantiser(), latents().requires_grad_()
    _, loss, code = quantiser(z)
    e = quantiser.lookup(code)
    torch.testing.assert_close(loss, 1.25 * (z - e).square().mean())
    to_z, to_codes = torch.autograd.grad(loss, (z, quantiser.codebook.weight))
    torch.testing.assert_close(to_z, 0.25 * 2 * (z - e) / z.numel())
    pull = torch.zeros(7, 3)
    rows = (2 * (e - z) / z.numel()).permute(0, 2, 3, 1).reshape(-1, 3)
    pull.index_add_(0, code.flatten(), rows)
    torch.testing.assert_close(to_codes, pull)


def test_every_part_learns(vqgan):
    """From the pixels, encoder and decoder; from L_cb alone, the codebook."""
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    back, codebook_loss, _ = vqgan(image)
    weights = dict(vqgan.named_parameters())
    codebook = weights.pop("quantiser.codebook.weight")
    pixels = (image - back).abs().mean()
    gradients = torch.autograd.grad(pixels, list(weights.values()), retain_graph=True)
    assert [n for n, g in zip(weights, gradients, strict=True) if not g.abs().sum() > 0] == []
    assert torch.autograd.grad(codebook_loss, codebook)[0].abs().sum() > 0


def test_without_rounding_it_is_a_plain_autoencoder(vqgan):
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    back, codebook_loss, code = vqgan(image, quantise=False)
    assert torch.equal(back, vqgan.generate(vqgan.latents(image)))
    assert codebook_loss == 0 and torch.equal(code, vqgan.encode(image))


def test_the_pixels_of_a_patch_start_equal(make_vqgan):
    """A token gives each of its places one colour in all 4×4 pixels: there is no checkerboard."""
    image = make_vqgan(patch=4).decode(torch.randint(12, (1, 4, 5)))
    patches = rearrange(image, "b c (h p) (w q) -> b c h w (p q)", p=4, q=4)
    assert (patches.amax(-1) - patches.amin(-1)).max() < 1e-5
    assert patches.std() > 1e-2


def test_the_codebook_starts_within_a_kth_of_zero():
    weight = VectorQuantiser(50, 64, 0.25).codebook.weight
    assert 0.9 / 50 < weight.abs().max() <= 1 / 50


# ── layers at every pixel ─────────────────────────────────────────────────────────────────────


def grown(vqgan: VQGAN, **more: int) -> VQGAN:
    """The same weights, and further layers that have learned nothing."""
    grown = VQGAN(replace(vqgan.config, **more))
    grown.load_state_dict(vqgan.state_dict(), strict=False)
    return grown.eval()


def test_new_layers_start_as_nothing(vqgan):
    """The same pictures, bit for bit, and a gradient that lets the last of them begin."""
    more = {"pixel_channels": 8, "extra_decoder_blocks": 2}
    finer, grid = grown(vqgan, **more), torch.randint(12, (2, 4, 5))
    assert torch.equal(finer.decode(grid), vqgan.decode(grid))
    finer.decode(grid).square().mean().backward()
    assert finer.last_layer() is finer.decoder.finish.conv_out.weight
    new = [level.blocks[-1].conv2.weight for level in finer.decoder.levels]
    assert len(new) == 2 and all(w.grad.abs().sum() > 0 for w in (finer.last_layer(), *new))


def test_a_level_with_attention_can_be_deeper(make_vqgan):
    vqgan, grid = make_vqgan(attention_levels=(1,)), torch.randint(12, (1, 4, 4))
    larger = grown(vqgan, extra_decoder_blocks=1)
    assert torch.equal(larger.decode(grid), vqgan.decode(grid))


@pytest.mark.parametrize("patch, multipliers", [(1, (1, 1)), (2, (1, 1)), (4, (1,))])
def test_new_layers_end_at_every_pixel(make_vqgan, patch, multipliers):
    """Any patch that is a power of 2; once they have learned, every layer shows."""
    vqgan = make_vqgan(patch=patch, multipliers=multipliers, pixel_channels=8)
    grid = torch.randint(12, (1, 4, 6))
    assert vqgan.decode(grid).shape == (1, 3, 4 * vqgan.f, 6 * vqgan.f)
    torch.nn.init.normal_(vqgan.last_layer())
    vqgan.decode(grid).square().mean().backward()
    weights = dict(vqgan.decoder.finish.named_parameters())
    assert [name for name, p in weights.items() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("size", [(4, 5), (3, 1)])
def test_a_painting_is_fitted_to_known_pixels(make_vqgan, size):
    """Not at all at first; once learned wherever it was painted; and never if none are told."""
    vqgan = make_vqgan(patch=2)
    seeing, grid = grown(vqgan, known_channels=8), torch.randint(12, (2, *size))
    before = vqgan.decode(grid)
    image, unknown = torch.rand_like(before) * 2 - 1, torch.rand_like(before[:, :1]) < 0.5
    known = known_pixels(image, unknown)
    assert torch.equal(seeing.decode(grid, known), before)
    torch.nn.init.normal_(seeing.known.conv_out.weight)
    after = seeing.decode(grid, known)
    assert ((after - before).abs() > 1e-5).float().mean() > 0.99
    assert torch.equal(seeing.decode(grid), before)
    seeing.decode(grid, known).square().mean().backward()
    weights = dict(seeing.known.named_parameters())
    assert [name for name, p in weights.items() if not p.grad.abs().sum() > 0] == []
    fits = known_pixels(before, unknown)
    assert not torch.allclose(after, seeing.decode(grid, fits)), "it reads where the decoder misses"


def test_unknown_pixels_are_not_told():
    image, other = torch.rand(2, 2, 3, 8, 8).unbind()
    unknown = torch.rand(2, 1, 8, 8) < 0.5
    known = known_pixels(image, unknown)
    assert torch.equal(known, known_pixels(torch.where(unknown, other, image), unknown))
    assert torch.equal(known[:, 3:], 1 - unknown.float())
    assert torch.equal(known[:, :3], image.masked_fill(unknown, 0))


def test_what_fits_known_pixels_learns_alone(make_vqgan):
    vqgan = make_vqgan(known_channels=4)
    vqgan.hold_all_but_known()
    learn = {name for name, p in vqgan.named_parameters() if p.requires_grad}
    assert learn == {f"known.{name}" for name, _ in vqgan.known.named_parameters()}
    assert vqgan.last_layer() is vqgan.known.conv_out.weight
    vqgan.requires_grad_(True).hold_known()
    held = {name for name, p in vqgan.named_parameters() if not p.requires_grad}
    assert held == learn and vqgan.last_layer() is vqgan.decoder.conv_out.weight
    with pytest.raises(ValueError, match="known_channels must be at least 1"):
        make_vqgan().hold_all_but_known()


@pytest.mark.parametrize("layer", ["block", "stage"])
def test_what_a_pixel_layer_learns_is_added(layer):
    """Only its last bias is not zero: what goes in comes out, and the bias more."""
    of = TwoConvs(8) if layer == "block" else Finish(8, 2, 4)
    for p in of.parameters():
        torch.nn.init.zeros_(p)
    last = of.conv2 if layer == "block" else of.conv_out
    torch.nn.init.constant_(last.bias, 0.25)
    h, image = torch.randn(1, 8, 4, 4), torch.randn(1, 3, 8, 8)
    x = (h,) if layer == "block" else (h, image)
    torch.testing.assert_close(of(*x), x[-1] + 0.25)


def test_a_norm_keeps_small_variances_small():
    """(x - mean) / √(variance + 1e-6) over each of 32 groups: half the power where it is 1e-6."""
    x = 1e-3 * torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    groups = norm(64)(x).unflatten(1, (32, 2)).var(dim=(2, 3, 4))
    assert groups.shape == (1, 32) and (groups - 0.5).abs().max() < 0.02


def test_a_vqgan_takes_images_in_its_own_precision(make_vqgan):
    vqgan, image = make_vqgan(), torch.rand(1, 3, 16, 8) * 2 - 1
    z = make_vqgan().double().latents(image)
    assert z.dtype == torch.float64
    torch.testing.assert_close(z.float(), vqgan.latents(image), rtol=0, atol=1e-4)


def test_held_tokens_do_not_learn(make_vqgan):
    vqgan = make_vqgan()
    vqgan.hold_tokens()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    back, codebook_loss, _ = vqgan(image)
    assert not codebook_loss.requires_grad
    back.square().mean().backward()
    learns = {name.split(".")[0] for name, p in vqgan.named_parameters() if p.grad is not None}
    assert learns == {"decoder", "post_quant_conv"}


# ── the codes in use ──────────────────────────────────────────────────────────────────────────

USED = torch.tensor([1, 2, 5])


def test_shrinking_keeps_what_is_used():
    quantiser = make_quantiser()
    z, grid = latents(), make_quantiser().encode(latents())
    quantiser.shrink(USED)
    assert quantiser.K == 3
    assert torch.equal(quantiser.token_vectors(), quantiser.codebook.weight[USED])
    kept = torch.isin(grid, USED)
    assert kept.any() and not kept.all()
    tokens = quantiser.encode(z)
    assert torch.equal(USED[tokens][kept], grid[kept])
    assert tokens.min() >= 0 and tokens.max() < 3
    assert torch.equal(quantiser.lookup(tokens), make_quantiser().lookup(USED[tokens]))


def test_an_unused_code_maps_to_one_used_code_drawn_once():
    quantiser = make_quantiser(K=500)
    quantiser.shrink(USED, torch.Generator().manual_seed(0))
    table = quantiser.token_of
    assert set(table.tolist()) == {0, 1, 2}
    assert torch.equal(table[USED], torch.arange(3))
    again, other = make_quantiser(K=500), make_quantiser(K=500)
    again.shrink(USED, torch.Generator().manual_seed(0))
    other.shrink(USED, torch.Generator().manual_seed(1))
    assert torch.equal(again.token_of, table) and not torch.equal(other.token_of, table)
    z = latents()
    assert torch.equal(quantiser.encode(z), quantiser.encode(z))
    assert torch.equal(quantiser.encode(z), table[quantiser.nearest(z)])


def test_a_quantiser_that_was_shrunk_and_expanded_has_a_token_for_every_code():
    quantiser, code = make_quantiser(), make_quantiser().nearest(latents())
    assert not quantiser.is_replaced(code).any()
    quantiser.shrink(USED)
    assert torch.equal(quantiser.is_replaced(code), ~torch.isin(code, USED))
    quantiser.expand()
    assert quantiser.size == quantiser.K and torch.equal(quantiser.encode(latents()), code)


@pytest.mark.parametrize("used", [[], [-1, 2], [2, 7], [2, 1], [1, 1]])
def test_used_codes_are_sorted_codes(used):
    with pytest.raises(ValueError, match="used codes must"):
        make_quantiser().shrink(torch.tensor(used, dtype=torch.int64))


def test_dead_codes_are_revived_where_latents_are():
    quantiser, z = make_quantiser(), latents()
    before = quantiser.codebook.weight.detach().clone()
    dead = torch.tensor([True, False, False, True, False, False, True])
    quantiser.revive(dead, z, torch.Generator().manual_seed(0))
    after = quantiser.codebook.weight.detach()
    assert torch.equal(after[~dead], before[~dead])
    places = z.permute(0, 2, 3, 1).reshape(-1, 3)
    for code in after[dead]:
        assert (places == code).all(1).any()
    assert len(after[dead].unique(dim=0)) == 3  # a latent each, of forty


# ── images in, images out ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("H, W", [(32, 32), (8, 8), (16, 40), (64, 24)])
def test_any_multiple_of_f_will_do(vqgan, H, W):
    image = torch.rand(2, 3, H, W) * 2 - 1
    grid = vqgan.encode(image)
    assert grid.shape == (2, H // 8, W // 8) and grid.dtype == torch.int64
    assert grid.min() >= 0 and grid.max() < vqgan.K
    assert vqgan.decode(grid).shape == image.shape


@pytest.mark.parametrize("H, W", [(32, 31), (4, 8), (9, 16), (0, 8)])
def test_other_sizes_are_refused(vqgan, H, W):
    with pytest.raises(ValueError, match=f"image sides must be multiples of f = 8, got {H}×{W}"):
        vqgan.encode(torch.zeros(1, 3, H, W))


def test_f_is_patch_times_halvings():
    assert VQGANConfig().f == 16 and VQGANConfig().grid == (16, 16)
    assert VQGANConfig(patch=4, multipliers=(1, 2), attention_levels=()).f == 8


def test_the_smallest_shapes_are_shapes():
    least = dict(image_size=2, K=1, embed_dim=1, z_channels=1, blocks=1, multipliers=(1, 1))
    assert VQGANConfig(**least, attention_levels=(0, 1)).grid == (1, 1)


def test_a_config_survives_json():
    assert VQGANConfig(multipliers=[1, 2], attention_levels=[1]) == VQGANConfig(
        multipliers=(1, 2), attention_levels=(1,)
    )


@pytest.mark.parametrize(
    "shape, sentence",
    [
        (dict(channels=40), "channels must be a multiple of 32"),
        (dict(channels=0), "channels must be a whole number, at least 1, got 0"),
        (dict(channels=128.0), "channels must be a whole number, at least 1, got 128.0"),
        (dict(multipliers=(1, 0), attention_levels=()), "multipliers must be .* at least 1, got 0"),
        (dict(multipliers=[], attention_levels=[]), "multipliers must be at least one, got none"),
        (dict(image_size=0), "image_size must be a whole number, at least 1, got 0"),
        (dict(image_size=100), "image_size must be a multiple of 16, got 100"),
        (dict(K=0), "K must be a whole number, at least 1, got 0"),
        (dict(patch=0), "patch must be a whole number, at least 1, got 0"),
        (
            dict(patch=3, pixel_channels=16, image_size=240),
            "patch must be a power of 2 where pixel_channels is not 0",
        ),
        (dict(pixel_channels=-1), "pixel_channels must be a whole number, at least 0, got -1"),
        (
            dict(extra_decoder_blocks=-1),
            "extra_decoder_blocks must be a whole number, at least 0, got -1",
        ),
        (dict(quantiser="round"), r"quantiser must be one of \('vector',\), got 'round'"),
        (dict(attention_levels=(5,)), r"attention_levels must lie in \[0, 5\)"),
    ],
)
def test_what_is_no_vqgan_is_refused(shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        VQGANConfig(**shape)


def test_the_published_shape_has_the_published_size():
    """The f = 16 VQGAN with 1024 codes: 72 million weights, attention at its coarsest level."""
    with torch.device("meta"):
        vqgan = VQGAN(VQGANConfig())
    assert sum(p.numel() for p in vqgan.parameters()) == pytest.approx(72e6, rel=0.03)


def test_the_shipped_vqgan_is_the_preset_s():
    shipped = load_vqgan(SHIPPED)
    assert shipped.config == find_preset("scenery").vqgan and shipped.K == 4096
