"""Attention, blocks and caches: who sees whom, and that decoding gives the numbers of training."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from imagebart import transformer
from imagebart.transformer import (
    TILE,
    BlockShape,
    Decoder,
    Encoder,
    as_bias,
    attend,
    attend_all,
    causal,
    in_tiles,
    tile_sizes,
)


def make_decoder(width=16, heads=2, prefix=1, cross=True, depth=2, seed=0) -> Decoder:
    torch.manual_seed(seed)
    shape = BlockShape(width, heads, width // heads, bias=True)
    decoder = Decoder(depth, shape, cross=cross, prefix=prefix)
    for p in decoder.parameters():
        p.data += 0.3 * torch.randn(p.shape) / p.shape[-1] ** 0.5
    return decoder.eval().requires_grad_(False)


def split(total: int, cuts) -> list[range]:
    """0 .. total in consecutive windows that end at the `cuts`."""
    ends = sorted({c for c in cuts if 0 < c < total} | {total})
    return [range(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def stepped(decoder: Decoder, x, memory, windows) -> torch.Tensor:
    """The outputs of `Decoder.step`, window after window."""
    cache = decoder.cache(len(x), x.shape[1], memory)
    slots = [torch.tensor([list(w)] * len(x)) for w in windows]
    return torch.cat([decoder.step(x[:, list(s[0])], s, cache) for s in slots], dim=1)


def seen_by(output, x) -> torch.Tensor:
    """Which slots of x (1, s, c) the outputs (1, s, c) depend on, by gradient: (s, s) booleans."""
    rows = [torch.autograd.grad(o[0], x, retain_graph=True)[0] for o in output[0]]
    return torch.stack([row[0].abs().sum(-1) > 0 for row in rows])


# ── who sees whom ─────────────────────────────────────────────────────────────────────────────


def test_the_mask_is_a_staircase_behind_an_open_prefix():
    for length in range(1, 6):
        for prefix in range(length + 1):
            visible = causal(length, prefix, torch.device("cpu"))
            for i in range(length):
                for j in range(length):
                    assert visible[i, j] == (j <= i or j < prefix)


@pytest.mark.parametrize("prefix", [1, 3])
@pytest.mark.parametrize("cross", [True, False])
def test_a_decoder_sees_its_past_and_its_prefix(prefix, cross):
    decoder = make_decoder(prefix=prefix, cross=cross)
    x = torch.randn(1, 7, 16, requires_grad=True)
    memory = torch.randn(1, 5, 16) if cross else None
    seen = seen_by(decoder(x, memory), x)
    assert torch.equal(seen, causal(7, prefix, x.device))


def test_a_decoder_sees_all_of_the_memory():
    decoder = make_decoder()
    memory = torch.randn(1, 5, 16, requires_grad=True)
    assert seen_by(decoder(torch.randn(1, 4, 16), memory), memory).all()


def test_an_encoder_sees_in_both_directions():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 16, requires_grad=True)
    assert seen_by(Encoder(1, BlockShape(16, 2, 8, bias=True))(x), x).all()


# ── decoding gives the numbers of training ────────────────────────────────────────────────────


@settings(max_examples=50)
@given(
    prefix=st.integers(1, 3),
    length=st.integers(4, 40),
    cuts=st.lists(st.integers(1, 40), max_size=8),
    cross=st.booleans(),
)
def test_any_windows_give_what_one_reading_gives(prefix, length, cuts, cross):
    """Slots of the prefix see each other, so they must be read together."""
    decoder = make_decoder(prefix=prefix, cross=cross)
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, 16, generator=generator)
    memory = torch.randn(2, 5, 16, generator=generator) if cross else None
    windows = split(length, [c for c in cuts if c >= prefix])
    together = decoder(x, memory)
    torch.testing.assert_close(stepped(decoder, x, memory, windows), together, rtol=0, atol=2e-5)


def test_rows_may_stand_at_different_slots():
    decoder = make_decoder(cross=False)
    x = torch.randn(2, 9, 16)
    together = decoder(x)
    cache = decoder.cache(2, 9, None)
    decoder.step(x[:, :4], torch.arange(4).expand(2, -1), cache)
    slots = torch.tensor([[4, 5, 6], [2, 3, 4]])
    there = x.gather(1, slots[..., None].expand(-1, -1, 16))
    expected = together.gather(1, slots[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(decoder.step(there, slots, cache), expected, rtol=0, atol=2e-5)


def test_what_was_guessed_wrong_is_forgotten_when_read_again():
    decoder = make_decoder(cross=False)
    x = torch.randn(1, 6, 16)
    cache = decoder.cache(1, 6, None)
    decoder.step(torch.randn(1, 6, 16), torch.arange(6)[None], cache)
    again = decoder.step(x, torch.arange(6)[None], cache)
    torch.testing.assert_close(again, decoder(x), rtol=0, atol=2e-5)


# ── rounding: a row's numbers do not depend on its company ────────────────────────────────────


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "width, threads", [(64, 1), (256, 1), (256, 2), (512, 2)], indirect=["threads"]
)
def test_a_row_alone_rounds_as_in_any_batch(width, threads):
    """Bit for bit: what makes one seed one image."""
    decoder = make_decoder(width=width, heads=width // 32, depth=1)
    x, memory = torch.randn(17, 8, width), torch.randn(17, 9, width)
    windows = split(8, [1, 2])
    each = zip(x.split(1), memory.split(1), strict=True)
    alone = torch.cat([stepped(decoder, *one, windows) for one in each])
    for size in (2, 7, 17):
        assert torch.equal(stepped(decoder, x[:size], memory[:size], windows), alone[:size])


@pytest.mark.parametrize("width", [64, 128, 256, 512])
def test_windows_of_any_size_round_alike(width):
    """Bit for bit, from one slot at a time to all at once."""
    decoder = make_decoder(width=width, heads=width // 32, depth=1)
    x, memory = torch.randn(2, 40, width), torch.randn(2, 41, width)
    one_by_one = stepped(decoder, x, memory, split(40, range(40)))
    for size in (2, 8, 15, 16, 17, 32, 40):
        windows = split(40, range(0, 40, size))
        assert torch.equal(stepped(decoder, x, memory, windows), one_by_one)


@pytest.mark.parametrize("depth, cross", [(1, True), (3, True), (2, False)])
def test_what_is_read_is_seen_by_later_slots(depth, cross):
    """Bit for bit as if its own outputs had been asked for."""
    decoder = make_decoder(depth=depth, cross=cross)
    x, memory = torch.randn(2, 9, 16), torch.randn(2, 5, 16) if cross else None
    early, late = torch.arange(6).expand(2, -1), torch.arange(6, 9).expand(2, -1)
    stepped, read = (decoder.cache(2, 9, memory) for _ in range(2))
    decoder.step(x[:, :6], early, stepped)
    assert decoder.read(x[:, :6], early, read) is None
    expected = decoder.step(x[:, 6:], late, stepped)
    assert torch.equal(decoder.step(x[:, 6:], late, read), expected)


@pytest.mark.parametrize("mkl, one_dnn", [("SSE4_2", "SSE41"), ("AVX2", "AVX2")])
def test_rows_round_alike_on_older_processors(mkl, one_dnn):
    """The matrix libraries pick their kernels by processor; the promise is for each of them."""
    env = os.environ | {"MKL_ENABLE_INSTRUCTIONS": mkl, "ONEDNN_MAX_CPU_ISA": one_dnn}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run([*tests, "-k", "alone_rounds or any_size"], env=env, capture_output=True)
    assert run.returncode == 0, run.stdout.decode()


@pytest.mark.parametrize("rows", [1, TILE - 1, TILE, TILE + 1, 3 * TILE])
def test_tiles_change_no_number(rows):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(rows, 24)
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(layer, x, TILE), layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "rows, alike, sizes",
    [
        (16, True, [16]),
        (112, True, [64, 32, 16]),
        (208, True, [128, 64, 16]),
        (592, True, [256, 256, 64, 16]),
        (96, False, [16] * 6),
    ],
)
def test_as_many_tiles_together_as_round_alike(rows, alike, sizes, monkeypatch):
    monkeypatch.setattr(transformer, "rounds_alike", lambda *_: alike)
    assert tile_sizes(nn.Linear(2, 2), torch.zeros(rows, 2), 16) == sizes


@pytest.mark.parametrize("mask", ["all", "one for all", "one each"])
def test_attention_that_learns_in_bf16_is_attention(mask):
    """Values and gradients of the products written out, beside the fused kernel's in float32."""
    torch.manual_seed(0)
    wide = [torch.randn(3, 2, s, 8).bfloat16() for s in (5, 11, 11)]
    visible = {
        "all": None,
        "one for all": torch.rand(5, 11) < 0.7,
        "one each": torch.rand(3, 1, 5, 11) < 0.7,
    }[mask]
    if visible is not None:
        visible[..., 0] = True
    learning = [x.clone().requires_grad_() for x in wide]
    exact = [x.float().requires_grad_() for x in wide]
    got = attend_all(*learning, visible)
    expected = F.scaled_dot_product_attention(*exact, attn_mask=visible)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.03)
    for a, b in zip(
        torch.autograd.grad(got.float().square().sum(), learning),
        torch.autograd.grad(expected.square().sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=0.02 * b.abs().max().item())


@pytest.mark.parametrize("queries", [1, 5, TILE, TILE + 3])
def test_padded_attention_is_attention(queries):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, s, 8) for s in (queries, 11, 11))
    visible = torch.rand(2, 1, queries, 11) < 0.7
    visible[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    places_first = (x.transpose(1, 2) for x in (q, k, v))
    got = (
        attend(*places_first, as_bias(visible, q.dtype), TILE).unflatten(-1, (3, 8)).transpose(1, 2)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
