"""Sampling: the noise is drawn first, so a seed is an image, whatever the way and the company."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from imagebart import ImageBART, sampling
from imagebart.choice import FILTERS, Filter, draw, filtered
from imagebart.decodable import Decodable
from imagebart.diffusion import MultinomialDiffusion, geometric
from imagebart.editing.panorama import Blended
from imagebart.guidance import Filtered, Guided
from imagebart.sampling import (
    METHODS,
    Draft,
    Request,
    decode_parallel,
    decode_sequential,
    decoder,
    default_window,
    exponential,
    filters_and_decoder,
    generator_of,
    gumbel,
    image_seeds,
    scale_filters,
    span,
    step_of,
    uniform_tokens,
)

CHOICES = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=0),
    dict(top_k=3),
    dict(top_p=0.8),
    dict(temperature=1.3, top_k=5, top_p=0.9, min_p=0.05),
]


def run(model, seeds, **options) -> list[torch.Tensor]:
    """Every stop of the chain, T first, as tokens (b, h, w)."""
    return [step.tokens for step in model.sample_steps(len(seeds), seed=seeds, **options)]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ── one seed, one image ───────────────────────────────────────────────────────────────────────


def test_parallel_is_sequential_for_a_thousand_seeds(tiny):
    """Over all scales, T = 4: the tokens of every stop of the chain."""
    seeds = list(range(1000))
    assert equal(run(tiny, seeds), run(tiny, seeds, method="sequential"))


def in_batches(model, seeds, size, **options) -> list[torch.Tensor]:
    """The stops of every seed, drawn `size` at a time."""
    parts = [run(model, seeds[i : i + size], **options) for i in range(0, len(seeds), size)]
    return [torch.cat(stop) for stop in zip(*parts, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("method", ["parallel", "sequential"])
def test_same_seed_same_tokens_whatever_the_batch(tiny, size, method):
    seeds = list(range(100, 116))
    together = [tokens[:8] for tokens in run(tiny, seeds)]
    assert equal(in_batches(tiny, seeds[:8], size, method=method), together)


@pytest.mark.parametrize("choice", CHOICES[1:])
def test_same_seed_same_tokens_however_they_are_chosen(tiny, choice):
    seeds = list(range(4))
    together = run(tiny, seeds, **choice)
    assert equal(in_batches(tiny, seeds, 1, **choice), together)
    assert equal(in_batches(tiny, seeds, 3, method="sequential", **choice), together)


@pytest.mark.parametrize("width", [64, 256])
def test_same_seed_same_tokens_at_real_widths(make_model, width):
    """Where products of few rows round differently from products of many."""
    model = make_model(T=3, width=width, heads=width // 32, head_width=32)
    seeds = list(range(7))
    together = run(model, seeds)
    alone = [run(model, [seed], method="sequential") for seed in seeds]
    assert equal([torch.cat(stop) for stop in zip(*alone, strict=True)], together)


@pytest.mark.parametrize("size", [1, 8, 16, 32, 64])
def test_the_window_changes_no_token(make_denoiser, size):
    denoiser = make_denoiser(2, grid=(8, 8), conditions={"class": 3})
    x_t, noise = uniform_tokens(range(6), 2, 64, 12), gumbel(range(6), 2, 64, 12)
    condition = torch.arange(6) % 3
    expected = decode_sequential(denoiser, x_t, noise, Filter(), condition)
    at, note = [], lambda t, positions: at.append(positions)
    how = {"window": size, "on_pass": note}
    assert torch.equal(decode_parallel(denoiser, x_t, noise, Filter(), condition, **how), expected)
    assert {positions.shape[1] for positions in at} == {size}


@pytest.mark.slow
def test_the_shipped_chain_is_exact_for_a_thousand_seeds():
    """Parallel, seven at a time, is sequential, sixteen at a time; filtered and not."""
    model = ImageBART.from_pretrained(device="cpu")
    choices = itertools.cycle([dict(), dict(top_k=100), dict(top_p=0.9, temperature=0.9)])
    for start, choice in zip(range(0, 1000, 16), choices, strict=False):
        seeds = range(start, start + 16)
        expected = run(model, seeds, method="sequential", **choice)
        assert equal(in_batches(model, seeds, 7, **choice), expected), (seeds, choice)


@pytest.mark.parametrize("choice", CHOICES)
def test_parallel_is_sequential_however_tokens_are_chosen(make_denoiser, choice):
    denoiser, choose = make_denoiser(2, grid=(6, 7)), Filter(**choice)
    x_t, noise = uniform_tokens(range(9), 2, 42, 12), gumbel(range(9), 2, 42, 12)
    expected = decode_sequential(denoiser, x_t, noise, choose)
    assert torch.equal(decode_parallel(denoiser, x_t, noise, choose), expected)


def test_a_guess_that_is_right_costs_one_pass(make_denoiser):
    """The fixed point, handed in as the guess, is verified at once."""
    denoiser, noise = make_denoiser(3), gumbel([0], 3, 16, 12)
    x = decode_sequential(denoiser, uniform_tokens([0], 3, 16, 12), noise, Filter())
    passes, note = [], lambda t, at: passes.append((t, at.shape))
    assert torch.equal(decode_parallel(denoiser, x, noise, Filter(), on_pass=note), x)
    assert passes == [(3, (1, 16))]


@pytest.mark.parametrize("K", [12, 1024])
def test_the_first_positions_have_the_same_noise_however_many_follow(K):
    whole = gumbel([3, 8], 2, 256, K)
    for n in (1, 2, 17, 100, 255):
        assert torch.equal(gumbel([3, 8], 2, n, K), whole[:, :n])


@pytest.mark.parametrize("decode", METHODS.values(), ids=METHODS)
def test_noise_is_needed_up_to_the_last_masked_token(make_denoiser, decode):
    denoiser, x_t = make_denoiser(2, grid=(8, 8)), uniform_tokens(range(3), 2, 64, 12)
    noise, known = gumbel(range(3), 2, 64, 12), torch.ones(3, 64, dtype=torch.bool)
    known[0, 5:9], known[1, 30], known[2, 20:40] = False, False, False
    how = Filter(), None, known, uniform_tokens(range(3), 3, 64, 12)
    assert torch.equal(
        decode(denoiser, x_t, noise[:, :40], *how), decode(denoiser, x_t, noise, *how)
    )


@pytest.mark.parametrize("output", ["plain", "residual", "posterior"])
@pytest.mark.parametrize("choice", [dict(), dict(top_k=4, temperature=0.7), dict(temperature=0)])
def test_a_draft_changes_no_token(make_denoiser, output, choice):
    """It only guesses; what is drawn is drawn."""
    choose, seeds = Filter(**choice), range(5)
    x = y = uniform_tokens(seeds, 4, 64, 12)
    draft = None
    for t in (4, 3, 2):
        denoiser = make_denoiser(t, T=4, grid=(8, 8), output=output)
        draft = draft or Draft(denoiser.diffusion)
        noise = gumbel(seeds, t, 64, 12)
        x = decode_parallel(denoiser, x, noise, choose, draft=draft)
        y = decode_sequential(denoiser, y, noise, choose)
        assert torch.equal(x, y)


@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_draft_is_what_the_network_said_of_x_1(make_denoiser, t):
    """The posterior output blurs softmax(f) by what is known; learning takes that away again."""
    denoiser = make_denoiser(t, T=4)
    f, x_t = torch.randn(2, 16, 12), uniform_tokens(range(2), t, 16, 12)
    draft = Draft(denoiser.diffusion)
    draft.update(denoiser.logits(f, x_t), x_t, t)
    torch.testing.assert_close(draft.x_1_prediction(), f.softmax(-1), rtol=0, atol=1e-5)


def test_a_draft_that_is_right_costs_one_pass(make_denoiser):
    """A network that knows nothing of the context says what the coarser scale said."""
    denoisers = {t: make_denoiser(t, T=4) for t in (4, 3, 2)}
    bias = torch.randn(12)
    for denoiser in denoisers.values():
        denoiser.head.weight.data.zero_()
        denoiser.head.bias.data.copy_(bias)
    draft, x, passes = Draft(denoisers[2].diffusion), uniform_tokens([0], 4, 16, 12), []
    for t, denoiser in denoisers.items():
        noise, note = gumbel([0], t, 16, 12), lambda t, at: passes.append(t)
        x = decode_parallel(denoiser, x, noise, Filter(), draft=draft, on_pass=note)
    assert [passes.count(t) for t in (3, 2)] == [1, 1]


class Recalling(Decodable):
    """p(x^i | Σ x^{<i}, x_t^i, condition) by a table: no network, nothing but what the protocol
    asks for, and no token is known that was not read."""

    def __init__(self, n: int, t: int = 2, K: int = 5):
        self.n, self.K, self.t = n, K, t
        self.table = 2 * torch.randn(K, K, generator=torch.Generator().manual_seed(0))

    def start(self, x_t, condition=None):
        shift = 0 if condition is None else condition[:, None]
        return {"x_t": (x_t + shift) % self.K, "inputs": torch.zeros_like(x_t)}

    def step(self, x_prev, at, state):
        before = x_prev.gather(1, (at - 1).clamp(min=0))
        state["inputs"].scatter_(1, at, torch.where(at == 0, 0, before))
        total = state["inputs"].cumsum(1).gather(1, at) % self.K
        return self.table[total] + self.table.T[state["x_t"].gather(1, at)]

    def read(self, x_prev, end, state):
        state["inputs"][:, 1:end] = x_prev[:, : end - 1] if end else 0

    def keep(self, rows, state):
        state |= {name: x[rows] for name, x in state.items()}

    def by_hand(self, x_t, noise, condition, known, x_known):
        """The tokens, and their logits: one position after another, by the definition."""
        x, logits = x_known.clone(), torch.zeros_like(noise)
        for b, i in itertools.product(range(len(x_t)), range(self.n)):
            shift = 0 if condition is None else condition[b]
            said = self.table.T[(x_t[b, i] + shift) % self.K]
            logits[b, i] = self.table[x[b, :i].sum() % self.K] + said
            if not known[b, i]:
                x[b, i] = (logits[b, i] + noise[b, i]).argmax()
        return x, logits


KNOWN = {
    "nothing": [".........."] * 3,
    "ends": ["##...##..#", "##..#.....", "#########."],
    "a gap": ["###.##.###", "####.#####", "#####.####"],
}
"""Known positions (#) of three images."""


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("with_draft", [False, True])
@pytest.mark.parametrize("with_condition", [False, True])
@pytest.mark.parametrize("rows", KNOWN.values(), ids=KNOWN)
def test_decoding_is_what_its_definition_says(rows, with_condition, with_draft, window):
    """Tokens, the positions that are read, and the logits that a draft keeps; in both ways."""
    known = torch.tensor([[one == "#" for one in row] for row in rows])
    scale, seeds = Recalling(10), range(3)
    x_t, x_known = uniform_tokens(seeds, 2, 10, 5), uniform_tokens(seeds, 3, 10, 5)
    noise, condition = gumbel(seeds, 2, 10, 5), torch.tensor([2, 0, 4]) if with_condition else None
    x, logits = scale.by_hand(x_t, noise, condition, known, x_known)
    first = min(row.find(".") for row in rows)
    end = max(row.rfind(".") for row in rows) + 1
    fixed = (None, None) if known.sum() == 0 else (known, x_known)
    how, seen = (scale, x_t, noise, Filter(), condition, *fixed), []
    draft = Draft(MultinomialDiffusion(geometric(3), 5)) if with_draft else None
    note = lambda t, at: seen.append((t, at.tolist()))  # noqa: E731
    assert torch.equal(decode_sequential(*how, draft=draft, on_pass=note), x)
    assert seen == [(2, [[i]] * 3) for i in range(first, end)]
    seen.clear()
    assert torch.equal(decode_parallel(*how, draft=draft, window=window, on_pass=note), x)
    read = {i for t, at in seen for row in at for i in row if t == 2}
    assert read == set(range(first, end)) and len(seen) <= end - first
    assert {len(row) for _, at in seen for row in at} == {min(window or 10, end - first)}
    if draft is not None:
        kept, of, t = draft.last
        last = [row.rfind(".") + 1 for row in rows]  # beyond it nothing of a row is read
        for b in range(3):
            torch.testing.assert_close(kept[b, : last[b] - first], logits[b, first : last[b]])
        assert kept.shape[1] == end - first and torch.equal(of, x_t[:, first:end]) and t == 2


def test_a_window_on_a_cpu_is_16_positions_and_on_anything_else_64():
    devices = "cpu", "cuda", "mps"
    assert [default_window(torch.device(one)) for one in devices] == [16, 64, 64]
    x_t, noise, seen = torch.zeros(1, 40, dtype=torch.int64), gumbel([0], 2, 40, 5), []
    decode_parallel(Recalling(40), x_t, noise, Filter(), on_pass=lambda t, at: seen.append(at))
    assert {at.shape for at in seen} == {(1, 16)}


def test_a_draft_proposes_what_x_1_leads_to():
    """argmax( log Σ_{x_1} p(x_1) q(x_{t-1} | x_1) + log q(x_t | x_{t-1}) + noise ), by tables."""
    diffusion, K = MultinomialDiffusion(geometric(4), 5), 5
    draft, every = Draft(diffusion), torch.arange(K)[None]
    x_4, x_3 = uniform_tokens(range(8), 4, 6, K), uniform_tokens(range(8), 3, 6, K)
    p = torch.full((8, 6, K), 1 / K)
    for t, x_t in ((4, x_4), (3, x_3)):
        noise, alpha_bar = gumbel(range(8), t, 6, K), float(diffusion.alpha_bar[t - 1])
        prior = p @ diffusion.q_marginal(every, t - 1)[0]
        likelihood = diffusion.q_step(every, t)[0][:, x_t].movedim(0, -1)
        expected = ((prior * likelihood).log() + noise).argmax(-1)
        assert torch.equal(draft.propose(x_t, t, noise, Filter()), expected)
        p = torch.randn(8, 6, K, generator=torch.Generator().manual_seed(t)).mul(3).softmax(-1)
        z = (alpha_bar * p + (1 - alpha_bar) / K).log() + diffusion.log_likelihood(x_t, t)
        draft.update(z, x_t, t)
        torch.testing.assert_close(draft.x_1_prediction(), p, rtol=0, atol=1e-5)
    draft.update(10 * z, x_3, 3)  # of no x_1 at all
    assert draft.x_1_prediction().min() == 0


def test_the_span_goes_from_the_first_masked_position_to_the_last():
    known = torch.tensor([[one == "#" for one in row] for row in ("#.#.##", "......", "######")])
    first, end = span(torch.zeros(3, 6, dtype=torch.int64), known)
    assert first.tolist() == [1, 0, 0] and end.tolist() == [4, 6, 0]
    first, end = span(torch.zeros(1, 6, dtype=torch.int64), None)
    assert first.tolist() == [0] and end.tolist() == [6]


def test_all_that_is_decoded_is_decodable(make_denoiser):
    denoiser = make_denoiser(2)
    filtered_one = Filtered(denoiser, Filter())
    guided = Guided(denoiser, Filter(), torch.zeros(1, 1, dtype=torch.int64), 2.0)
    blended = Blended([], denoiser, Filter(), torch.ones(1, 16))
    for scale in (denoiser, filtered_one, guided, blended):
        assert isinstance(scale, Decodable) and (scale.n, scale.K, scale.t) == (16, 12, 2)


def test_image_i_of_one_seed_has_its_own(tiny):
    together = run(tiny, [7, 8, 9])
    steps = [step.tokens for step in tiny.sample_steps(3, seed=7)]
    assert equal(steps, together)
    assert len(torch.unique(steps[-1], dim=0)) == 3


def test_noise_belongs_to_seed_scale_and_pass():
    one = gumbel([5], 2, 4, 3)
    assert torch.equal(gumbel([4, 5], 2, 4, 3)[1:], one)
    for other in (gumbel([6], 2, 4, 3), gumbel([5], 3, 4, 3), gumbel([5], 2, 4, 3, pass_index=1)):
        assert not torch.equal(other, one)
    assert not torch.equal(uniform_tokens([5], 3, 64, 99), uniform_tokens([6], 3, 64, 99))


def test_the_noise_of_a_seed_is_the_same_in_every_version():
    """Or a seed would not be the picture that it was."""
    assert generator_of(7, 3, 1, "gumbel").initial_seed() == 6211070241658883634
    expected = torch.tensor([[[0.58287483, 2.56595683], [0.32609054, -0.12229031]]])
    torch.testing.assert_close(gumbel([7], 3, 2, 2, 1), expected, rtol=0, atol=1e-6)
    tokens = [[11, 0, 1, 10, 9, 2], [9, 6, 7, 7, 8, 5]]
    assert uniform_tokens([7, 8], 3, 6, 12).tolist() == tokens


def test_a_step_is_a_grid_and_a_part_of_the_way():
    model = SimpleNamespace(grid=(2, 3), T=5)
    for t, done in ((5, 0), (4, 0.25), (1, 1)):
        step = step_of(model, t, torch.arange(12).reshape(2, 6))
        assert (step.t, step.done) == (t, done)
        assert step.tokens.tolist() == torch.arange(12).reshape(2, 2, 3).tolist()


def test_a_request_is_the_options_read(conditional):
    request = Request.of(conditional, 2, dict(seed=5, classes=["lake", None], guidance=2, top_k=4))
    assert request.seeds == [5, 6] and request.decode is decode_parallel
    assert request.filters == dict.fromkeys((2, 3, 4), Filter(top_k=4))
    assert request.encoded.condition[:, 0].tolist() == [2, -1]
    assert request.encoded.guidance == {2: 2, 3: 2, 4: 2}
    assert decoder("sequential") is decode_sequential and decoder(print) is print


def test_sampling_neither_uses_nor_moves_the_global_generator(tiny):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    once = run(tiny, [3])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert equal(run(tiny, [3]), once)


def test_the_chain_runs_from_noise_to_x_1(tiny):
    steps = list(tiny.sample_steps(2, seed=1))
    assert [step.t for step in steps] == [4, 3, 2, 1]
    assert [step.done for step in steps] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for step in steps:
        assert step.tokens.shape == (2, 4, 4) and step.tokens.dtype == torch.int64
        assert step.tokens.min() >= 0 and step.tokens.max() < tiny.K


# ── one token ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("choice", [dict(), dict(temperature=0.5), dict(top_k=4), dict(top_p=0.7)])
def test_draws_have_the_odds_of_the_filtered_softmax(choice):
    """Chi-square over 200 000 draws of 8 codes, fixed seed: right code fails with odds 1 in 10⁶;
    a temperature wrong by 5 % would score above 200."""
    draws, K = 200_000, 8
    logits = torch.linspace(-1.5, 1.5, K).expand(1, draws, K)
    choose = Filter(**choice)
    drawn = draw(logits, gumbel([0], 2, draws, K), choose)
    scaled = logits[:, :1] / choose.temperature
    p = filtered(scaled, choose.top_k, choose.top_p).softmax(-1)[0, 0].double()
    seen = torch.bincount(drawn[0], minlength=K).double()
    assert seen[p == 0].sum() == 0
    chi_square = ((seen - draws * p).square() / (draws * p))[p > 0].sum().item()
    # The mean of χ² is its degrees of freedom d; beyond d + 5.5 √(2d) + 15 lies less than 1e-6.
    freedom = int((p > 0).sum()) - 1
    assert chi_square < freedom + 5.5 * math.sqrt(2 * freedom) + 15


def test_bfloat16_draws_from_the_same_distribution(make_model):
    """1,000 images each way, other seeds. Codes at each place: chi-square of two samples, odds
    below 1 in 10⁶. Likelihood under the float32 model: within 5 standard errors."""
    model, count = make_model(T=3), 1000
    half = copy.deepcopy(model).to(torch.bfloat16)
    x, y = run(model, range(count))[-1], run(half, range(count, 2 * count))[-1]
    seen = torch.stack([F.one_hot(tokens.flatten(1), 12).sum(0) for tokens in (x, y)]).double()
    chi_square = ((seen[0] - seen[1]).square() / seen.sum(0).clamp(min=1)).sum()
    freedom = 16 * 11
    assert chi_square < freedom + 5.5 * math.sqrt(2 * freedom) + 15
    bits = [sum(model.bits_per_token_of(tokens).values()) for tokens in (x, y)]
    error = (sum(b.var() / count for b in bits)) ** 0.5
    assert abs(bits[0].mean() - bits[1].mean()) < 5 * error


def test_x_T_is_uniform():
    """48 000 tokens of 12 codes, fixed seeds; the bound has odds below 1 in 10⁶."""
    seen = torch.bincount(uniform_tokens(range(3000), 3, 16, 12).flatten(), minlength=12).double()
    assert ((seen - 4000).square() / 4000).sum() < 11 + 5.5 * math.sqrt(22) + 15


def test_no_noise_is_infinite():
    noise = gumbel(range(50), 2, 64, 256)
    assert noise.isfinite().all()
    # Gumbel: mean γ = 0.5772, variance π²/6; 819 200 draws, within 5 standard errors.
    assert abs(noise.mean() - 0.5772) < 5 * (math.pi**2 / 6 / noise.numel()) ** 0.5


def test_small_exponentials_are_exact():
    """Relative to float64, from the least u to the greatest, most of all the small: they choose."""
    least = torch.logspace(-30, -1, 3000, dtype=torch.float64).float()
    u = torch.cat([least, torch.linspace(0.1, 1 - 2**-24, 3000)])
    expected = -torch.log1p(-u.double())
    torch.testing.assert_close(exponential(u).double(), expected, rtol=3e-7, atol=0)


def test_the_largest_noises_differ():
    """As noise of 53 bits does; of 24 bits, fifty of these would be equal to others."""
    largest = gumbel([0], 2, 512, 4096).flatten().topk(1000).values
    assert len(largest.unique()) > 990


@pytest.mark.parametrize("temperature", [0, 1e-6])
def test_temperature_zero_is_greedy(temperature):
    logits = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, gumbel([0, 1, 2], 2, 5, 9), Filter(temperature=temperature))
    assert torch.equal(drawn, logits.argmax(-1))


def test_at_temperature_0_predictions_are_the_likeliest(tiny, monkeypatch):
    """The finest scale, whose tokens carry no noise, needs none; those of the others do."""
    greedy = run(tiny, [1, 2], temperature=0)

    def gumbel_huge_at_the_finest(seeds, t, n, K):
        return gumbel(seeds, t, n, K) * (1e30 if t == 2 else 1)

    monkeypatch.setattr(sampling, "gumbel", gumbel_huge_at_the_finest)
    assert equal(run(tiny, [1, 2], temperature=0), greedy)


# Logits without ties, whose order rounding cannot change.
rows = st.lists(st.integers(-32, 32).map(lambda i: i / 4), min_size=2, max_size=12, unique=True)


@given(rows, st.integers(1, 14))
def test_top_k_keeps_the_k_likeliest(row, k):
    kept = filtered(torch.tensor([[row]]), k, 1.0)[0, 0]
    expected = sorted(row, reverse=True)[:k]
    assert sorted(kept[kept.isfinite()].tolist(), reverse=True) == expected
    assert all(kept[i] == row[i] for i in range(len(row)) if kept[i].isfinite())


def test_top_k_keeps_all_that_equal_the_kth():
    kept = filtered(torch.tensor([[[1.0, 3.0, 1.0, 0.0, 1.0]]]), 2, 1.0)[0, 0]
    assert kept.isfinite().tolist() == [True, True, True, False, True]
    assert "equal to the k-th" in filtered.__doc__


@given(rows, st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_that_hold_p(row, p):
    logits = torch.tensor([[row]])
    kept = filtered(logits, 0, p)[0, 0].isfinite()
    odds = logits[0, 0].double().softmax(-1)
    mass, least = odds[kept].sum(), odds[kept].min()
    assert not (~kept).any() or odds[kept].min() > odds[~kept].max()
    assert mass >= p - 1e-6
    assert mass - least < p + 1e-6


def test_min_p_keeps_what_is_likely_beside_the_likeliest():
    """p_k ≥ min_p · max p, after the temperature, whatever else filters."""
    logits = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    for min_p in (0.01, 0.3, 0.7):
        kept = filtered(logits, 0, 1.0, min_p) > -torch.inf
        assert torch.equal(kept, p >= min_p * p.amax(-1, keepdim=True)) and not kept.all()
        both = filtered(logits, 3, 1.0, min_p) > -torch.inf
        assert torch.equal(both, kept & (filtered(logits, 3, 1.0) > -torch.inf))
    assert ((filtered(logits, 0, 1.0, 1.0) > -torch.inf).sum(-1) == 1).all()
    hot, noise = Filter(temperature=2.0, min_p=0.5), torch.full_like(logits, -50.0)
    noise[..., 0] = 0  # code 0 is drawn wherever it is kept
    flat = (logits / 2).softmax(-1)
    kept = flat[..., 0] >= 0.5 * flat.amax(-1)
    assert torch.equal(draw(logits, noise, hot) == 0, kept) and 0 < kept.sum() < kept.numel()


@pytest.mark.parametrize("temperature", [1e-320, 1e-38, 1e-31])
def test_temperatures_too_small_to_divide_by_are_greedy(tiny, temperature):
    logits, noise = 1e3 * torch.randn(2, 5, 12), gumbel([0, 1], 2, 5, 12)
    assert torch.equal(draw(logits, noise, Filter(temperature)), logits.argmax(-1))
    assert torch.equal(draw(logits, noise, Filter(1e-30)), logits.argmax(-1))
    cold, greedy = run(tiny, [1], temperature=temperature), run(tiny, [1], temperature=0)
    assert all(map(torch.equal, cold, greedy))


def test_filters_that_are_off_change_nothing():
    logits = torch.randn(2, 3, 7)
    for k in (0, 7, 100):
        assert torch.equal(filtered(logits, k, 1.0), logits)


# ── the caller's options ──────────────────────────────────────────────────────────────────────


def test_each_scale_may_have_its_own_choice(tiny):
    filters = scale_filters(4, temperature=[0.5, 1, 2], top_k=3, top_p=[1, 0.9, 0.8])
    assert filters == {2: Filter(0.5, 3, 1), 3: Filter(1, 3, 0.9), 4: Filter(2, 3, 0.8)}
    last_greedy = run(tiny, [1], temperature=[1, 1, 0])
    assert torch.equal(last_greedy[1], run(tiny, [1], temperature=0)[1])
    assert not torch.equal(last_greedy[1], run(tiny, [1])[1])


def test_a_filter_and_the_way_of_decoding_are_taken_from_the_options():
    given = dict(vars(Filter()), top_k=[1, 2], method="sequential", guidance=3)
    filters, decode = filters_and_decoder(3, given)
    assert filters == {2: Filter(top_k=1), 3: Filter(top_k=2)} and decode is decode_sequential
    assert given == {"guidance": 3} and tuple(vars(Filter())) == FILTERS


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(temperature=-0.1), "temperature must be a number, at least 0, got -0.1"),
        (dict(temperature=math.nan), "temperature must be a number, at least 0, got nan"),
        (dict(temperature=math.inf), "temperature must be a number, at least 0, got inf"),
        (dict(top_k=-1), "top_k must be a whole number, at least 0, got -1"),
        (dict(top_k=1.5), "top_k must be a whole number"),
        (dict(top_k=math.inf), "top_k must be a whole number, at least 0, got inf"),
        (dict(temperature="1"), "temperature must be a number, at least 0, got '1'"),
        (dict(top_p=None), r"top_p must lie in \(0, 1\], got None"),
        (dict(top_p=0.0), r"top_p must lie in \(0, 1\], got 0.0"),
        (dict(top_p=1.1), r"top_p must lie in \(0, 1\], got 1.1"),
        (dict(min_p=-0.1), r"min_p must lie in \[0, 1\], got -0.1"),
        (dict(min_p=1.1), r"min_p must lie in \[0, 1\], got 1.1"),
        (dict(temperature=[1, 1]), "temperature must be one number, or 3 for t = 2 to 4"),
        (dict(top_p=[]), "top_p must be one number, or 3"),
        (dict(method="fast"), "method must be one of"),
        (dict(seed=-1), f"seed must be a whole number, from 0 to {2**63 - 2}, got -1"),
        (dict(seed=2**63), "seed must be a whole number, from 0 to "),
        (dict(seed=2**63 - 1), "seed must be a whole number"),  # the second image's is too large
        (dict(seed=1.5), "seed must be a whole number"),
        (dict(seed=None), "seed must be a whole number"),
        (dict(seed="12"), "seed must be a whole number"),
        (
            dict(seed=[0, True]),
            f"every seed must be a whole number, from 0 to {2**63 - 1}, got True",
        ),
        (dict(seed=[0, 2**63]), "every seed must be a whole number"),
        (dict(seed=[1]), "seed must be one number or 2 of them, got 1"),
        (dict(seed=[1, 2, 3]), "seed must be one number or 2 of them, got 3"),
        (dict(classes=0), "this model takes no class"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tiny, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.sample(2, **options)


@pytest.mark.parametrize("count", [0, -1])
def test_at_least_one_image_is_drawn(tiny, count):
    with pytest.raises(ValueError, match=f"num_images must be a whole number, .* got {count}"):
        tiny.sample(count)


def test_numbers_may_be_numpys(tiny):
    odd = dict(seed=np.int64(3), temperature=np.float32(0.5), top_k=np.int64(5))
    plain = tiny.sample(2, seed=3, temperature=0.5, top_k=5, output_type="pt")
    assert torch.equal(tiny.sample(np.int64(2), **odd, output_type="pt"), plain)
    several = dict(odd, seed=np.array([3, 4]), top_k=torch.tensor([5, 5, 5]))
    several["temperature"] = torch.tensor(0.5)
    assert torch.equal(tiny.sample(2, **several, output_type="pt"), plain)


def test_the_largest_seeds_work(tiny):
    assert image_seeds(2**63 - 2, 2) == [2**63 - 2, 2**63 - 1]
    assert run(tiny, [0, 2**63 - 1])[-1].shape == (2, 4, 4)


def test_rows_that_are_done_leave_the_batch(make_denoiser):
    """Each row takes part in the passes it would need alone, and no more."""
    denoiser, seeds = make_denoiser(2, grid=(8, 8)), range(5)
    x_t, noise = uniform_tokens(seeds, 2, 64, 12), gumbel(seeds, 2, 64, 12)
    rows, note = [], lambda t, at: rows.append(len(at))
    alone = 0
    for i in seeds:
        rows.clear()
        decode_parallel(denoiser, x_t[i : i + 1], noise[i : i + 1], Filter(), on_pass=note)
        alone += len(rows)
    rows.clear()
    decode_parallel(denoiser, x_t, noise, Filter(), on_pass=note)
    assert sum(rows) == alone and rows[0] == 5 and rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("decode", [decode_sequential, decode_parallel])
def test_only_the_span_of_masked_tokens_is_drawn(make_denoiser, decode):
    """Known runs at either end cost no pass of their own."""
    denoiser, at = make_denoiser(2, grid=(8, 8)), []
    x_t, noise = uniform_tokens(range(2), 2, 64, 12), gumbel(range(2), 2, 64, 12)
    known = torch.ones(2, 64, dtype=torch.bool)
    known[0, 40], known[1, 44] = False, False
    note = lambda t, positions: at.append(positions)  # noqa: E731
    x = decode(denoiser, x_t, noise, Filter(), None, known, x_t, on_pass=note)
    assert torch.equal(x[known], x_t[known])
    assert min(where.min() for where in at) == 40
    assert len(at) == (5 if decode is decode_sequential else 1)
    nothing = decode(denoiser, x_t, noise, Filter(), None, torch.ones_like(known), x_t)
    assert torch.equal(nothing, x_t)
