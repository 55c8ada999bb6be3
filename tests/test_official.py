"""The released models give the released outputs: fixtures hold what the published code computed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imagebart.diffusion import cross_entropy
from imagebart.official import denoiser_from_released, vqgan_from_released
from imagebart.sampling import Filter, decode_parallel, decode_sequential

FIXTURES = Path(__file__).parent / "fixtures" / "official_a"
SCALES = ("encdec_residual", "encdec_plain", "deconly")
WEIGHTS = ("raw", "ema")
CLOSE = dict(rtol=0, atol=1e-4)
GREEDY = Filter(temperature=0.0)


def fixture(name: str):
    path = FIXTURES / name
    return json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)


def released_scale(name: str) -> dict:
    """A released file's tensors: the scale's own, and the VQGAN that every scale's file holds."""
    first_stage = fixture("vqgan_weights.safetensors")
    tensors = fixture(f"{name}_ckpt.safetensors")
    return tensors | {f"first_stage_model.{k}": v for k, v in first_stage.items()}


@pytest.fixture(scope="module")
def vqgan():
    config = fixture("vqgan_config.json")
    return vqgan_from_released(fixture("vqgan_weights.safetensors"), config).eval()


@pytest.fixture(scope="module", params=[(s, w) for s in SCALES for w in WEIGHTS], ids="-".join)
def scale(request):
    """(denoiser, diffusion, t, expected): a scale and what the released code gives for it."""
    name, weights = request.param
    tensors, config = released_scale(name), fixture(f"{name}_config.json")
    denoiser, diffusion, t = denoiser_from_released(tensors, config, ema=weights == "ema")
    expected = fixture(f"{name}_io.safetensors")
    own = {k.removeprefix(f"{weights}."): v for k, v in expected.items()}
    return denoiser.eval(), diffusion, t, own


# ── the VQGAN ─────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_vqgan_encodes_as_released(vqgan):
    io = fixture("vqgan_io.safetensors")
    image = io["square.image"]
    torch.testing.assert_close(vqgan.encoder(image), io["square.encoder_out"], **CLOSE)
    torch.testing.assert_close(vqgan.latents(image), io["square.prequant"], **CLOSE)


@torch.no_grad()
def test_vqgan_tokens_are_the_released_ones_where_a_code_has_one(vqgan):
    io = fixture("vqgan_io.safetensors")
    z = vqgan.latents(io["square.image"])
    assert torch.equal(vqgan.quantiser.nearest_code(z), io["square.raw_indices"])
    known = io["square.known_mask"]
    tokens = vqgan.encode(io["square.image"])
    assert torch.equal(tokens[known], io["square.remapped_indices_seed123"][known])
    assert (tokens[~known] < vqgan.K).all() and not known.all()


def test_codebook_is_shrunk_as_released(vqgan):
    io = fixture("vqgan_io.safetensors")
    known = io["remap.known_mask"]
    token = vqgan.quantiser.token_of[io["remap.full_indices"]]
    assert torch.equal(token[known], io["remap.expected_where_known"][known])
    assert torch.equal(vqgan.quantiser.used, io["remap.unmap_all"])


@torch.no_grad()
def test_vqgan_decodes_as_released(vqgan):
    io = fixture("vqgan_io.safetensors")
    z_q = vqgan.quantiser.lookup(io["square.dec_indices"])
    torch.testing.assert_close(z_q, io["square.dec_quant"], **CLOSE)
    torch.testing.assert_close(vqgan.decode(io["square.dec_indices"]), io["square.dec_image"], **CLOSE)


@torch.no_grad()
def test_vqgan_reconstructs_with_the_full_codebook_as_released(vqgan):
    io = fixture("vqgan_io.safetensors")
    back, _, _ = vqgan(io["square.image"])
    torch.testing.assert_close(back, io["square.reconstruction"], **CLOSE)


# ── a scale ───────────────────────────────────────────────────────────────────────────────────


def test_scale_numbers_are_the_papers(scale):
    _, diffusion, t, io = scale
    assert t == io["scale_token"][0, 0] + 1
    torch.testing.assert_close(diffusion.alpha_bar[1:].float(), io["alphacum"], rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.beta[2:].float(), io["beta"][1:], rtol=0, atol=1e-6)


@torch.no_grad()
def test_logits_are_the_released_ones(scale):
    denoiser, _, _, io = scale
    torch.testing.assert_close(denoiser(io["x_tm1"], io["x_t"]), io["logits"], **CLOSE)


@torch.no_grad()
def test_encoder_hidden_states_are_the_released_ones(scale):
    denoiser, _, _, io = scale
    if denoiser.sees_x_t:
        torch.testing.assert_close(denoiser.encode(io["x_t"], None), io["encoder_hidden"], **CLOSE)
    else:
        assert "encoder_hidden" not in io


def test_posteriors_are_the_released_ones(scale):
    _, diffusion, t, io = scale
    ours = diffusion.q_posterior(io["x_t"], io["x0"], t)
    torch.testing.assert_close(ours.mT, io["posterior"].flatten(2), **CLOSE)
    for s in range(2, diffusion.T + 1):
        step = f"post_t{s - 1}."
        released = {k.removeprefix(step): v for k, v in io.items() if k.startswith(step)}
        ours = diffusion.q_posterior(released["x_t"], released["x0"], s)
        torch.testing.assert_close(ours.mT, released["posterior"].flatten(2), **CLOSE)


@torch.no_grad()
def test_losses_are_the_released_ones(scale):
    denoiser, diffusion, t, io = scale
    logits = denoiser(io["x_tm1"], io["x_t"])
    hard = cross_entropy(logits, io["x_tm1"]).mean()
    soft = diffusion.posterior_kl(logits, io["x_t"], io["x0"], t).mean()
    for alpha, name in ((0, "hard"), (1, "soft"), (0, "alpha0.0"), (1, "alpha1.0"), (0.35, "alpha0.35")):
        ours = alpha * soft + (1 - alpha) * hard
        torch.testing.assert_close(ours, io[f"loss_{name}"].squeeze(), **CLOSE)


@pytest.mark.parametrize("decode", [decode_sequential, decode_parallel])
def test_greedy_decoding_is_the_released_one(scale, decode):
    denoiser, diffusion, _, io = scale
    noise = torch.zeros(*io["x_t"].shape, diffusion.K)
    with torch.inference_mode():
        assert torch.equal(decode(denoiser, io["x_t"], noise, GREEDY), io["greedy"])


@pytest.mark.parametrize("decode", [decode_sequential, decode_parallel])
def test_guided_greedy_decoding_is_the_released_one(scale, decode):
    denoiser, diffusion, _, io = scale
    known, start = io["inpaint.mask"].bool(), io["inpaint.mixed_start"]
    noise = torch.zeros(*start.shape, diffusion.K)
    with torch.inference_mode():
        drawn = decode(denoiser, start, noise, GREEDY, None, known, start)
    assert torch.equal(drawn, io["greedy_guided"])
