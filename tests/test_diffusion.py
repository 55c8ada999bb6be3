"""Forgetting, against enumeration: every equation beside the sum it abbreviates."""

import itertools
import math
from functools import reduce

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from imagebart.diffusion import MultinomialDiffusion, cross_entropy, geometric, keep_or_redraw

# The shape checks look at a random entry of a list, hypothesis would rather draw it itself.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

F32, F64 = torch.float32, torch.float64

# β of the steps before the last: a trace, all but a trace, and everything between.
betas = st.one_of(
    st.sampled_from([1e-12, 1e-8, 0.5, 1 - 1e-8, 1 - 1e-12]), st.floats(1e-12, 1 - 1e-12)
)


@st.composite
def chains(draw, dtype=F64, longest=8, codes=12):
    """A diffusion with T = 2 .. longest and K = 1 .. codes; its last β is 1."""
    steps = draw(st.lists(betas, max_size=longest - 2))
    bar = list(itertools.accumulate(steps, lambda kept, beta: kept * (1 - beta), initial=1.0))
    return MultinomialDiffusion([*bar, 0.0], draw(st.integers(1, codes)), dtype)


def codes_of(diffusion) -> torch.Tensor:
    """Every code once, as tokens (1, K)."""
    return torch.arange(diffusion.K)[None]


def pairs_of(diffusion) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of codes, as two rows of tokens (1, K²)."""
    a, b = torch.cartesian_prod(codes_of(diffusion)[0], codes_of(diffusion)[0]).reshape(-1, 2).T
    return a[None], b[None]


def transition(diffusion, t: int) -> torch.Tensor:
    """Eq. 5 as a matrix Q[x_{t-1}, x_t], from ᾱ alone."""
    bar, K = diffusion.alpha_bar.tolist(), diffusion.K
    beta = (bar[t - 1] - bar[t]) / bar[t - 1]
    return (1 - beta) * torch.eye(K, dtype=F64) + beta / K * torch.ones(K, K, dtype=F64)


def marginal(diffusion, t: int) -> torch.Tensor:
    """q(x_t | x_1) as a matrix, summed over everything in between."""
    steps = [transition(diffusion, s) for s in range(2, t + 1)]
    return reduce(torch.matmul, steps, torch.eye(diffusion.K, dtype=F64))


# ── what the chain does to a token ────────────────────────────────────────────────────────────


@given(chains(), st.data())
def test_rows_sum_to_one(diffusion, data):
    t = data.draw(st.integers(2, diffusion.T))
    x_t, x_1 = pairs_of(diffusion)
    posterior = diffusion.q_posterior(x_t, x_1, t)
    for q in (diffusion.q_step(x_1, t), diffusion.q_marginal(x_1, t), posterior):
        assert (q >= 0).all()
        assert (q.sum(-1) - 1).abs().max() <= 1e-12


@given(chains(dtype=F32), st.data())
def test_rows_sum_to_one_in_single_precision(diffusion, data):
    t = data.draw(st.integers(2, diffusion.T))
    x = codes_of(diffusion)
    for q in (diffusion.q_step(x, t), diffusion.q_marginal(x, t)):
        assert q.dtype == F32
        assert (q.sum(-1) - 1).abs().max() <= 1e-5


@given(chains(), st.data())
def test_a_step_keeps_or_redraws(diffusion, data):
    t = data.draw(st.integers(2, diffusion.T))
    q = diffusion.q_step(codes_of(diffusion), t)[0]
    torch.testing.assert_close(q, transition(diffusion, t), rtol=0, atol=1e-12)


@given(chains(), st.data())
def test_marginal_is_the_product_of_transitions(diffusion, data):
    """Chapman-Kolmogorov: eq. 6 is eq. 5, step after step."""
    t = data.draw(st.integers(2, diffusion.T))
    q = diffusion.q_marginal(codes_of(diffusion), t)[0]
    torch.testing.assert_close(q, marginal(diffusion, t), rtol=0, atol=1e-12)


@given(chains(), st.data())
def test_posterior_satisfies_bayes(diffusion, data):
    """q(x_{t-1} | x_t, x_1) against the joint of all three, counted out."""
    t = data.draw(st.integers(2, diffusion.T))
    x_t, x_1 = pairs_of(diffusion)
    joint = torch.einsum("ak,kb->bak", marginal(diffusion, t - 1), transition(diffusion, t))
    expected = joint / joint.sum(-1, keepdim=True)
    posterior = diffusion.q_posterior(x_t, x_1, t)[0]
    torch.testing.assert_close(posterior, expected[x_t[0], x_1[0]], rtol=0, atol=1e-9)


@given(chains(dtype=F32, longest=5))
def test_single_precision_is_as_good_as_it_can_be(diffusion):
    double = MultinomialDiffusion(diffusion.alpha_bar[1:].tolist(), diffusion.K, F64)
    x = codes_of(diffusion)
    for t in range(2, diffusion.T + 1):
        for single, exact in (
            (diffusion.q_step(x, t), double.q_step(x, t)),
            (diffusion.q_marginal(x, t), double.q_marginal(x, t)),
        ):
            torch.testing.assert_close(single.double(), exact, rtol=7e-7, atol=1e-30)


@given(chains())
def test_last_scale_remembers_nothing(diffusion):
    uniform = torch.full((1, diffusion.K, diffusion.K), 1 / diffusion.K, dtype=F64)
    x = codes_of(diffusion)
    torch.testing.assert_close(diffusion.q_marginal(x, diffusion.T), uniform, rtol=0, atol=1e-15)
    torch.testing.assert_close(diffusion.q_step(x, diffusion.T), uniform, rtol=0, atol=1e-15)
    x_t, x_1 = pairs_of(diffusion)
    torch.testing.assert_close(
        diffusion.q_posterior(x_t, x_1, diffusion.T),
        diffusion.q_marginal(x_1, diffusion.T - 1),
        rtol=0,
        atol=1e-12,
    )


def test_one_code_is_always_itself():
    diffusion = MultinomialDiffusion([1.0, 0.5, 0.0], 1, F64)
    x = torch.zeros(1, 2, dtype=torch.int64)
    for t in (2, 3):
        assert torch.equal(diffusion.q_posterior(x, x, t), torch.ones(1, 2, 1, dtype=F64))
        x_prev, x_t = diffusion.q_sample_pair(x, t)
        assert torch.equal(x_prev, x) and torch.equal(x_t, x)
    assert diffusion.posterior_kl(torch.randn(1, 2, 1), x, x, 3).abs().max() == 0


def test_each_image_may_have_its_own_scale():
    diffusion = MultinomialDiffusion([1.0, 0.7, 0.2, 0.0], 5)
    generator = torch.Generator().manual_seed(0)
    x_1, x_t = (torch.randint(5, (3, 4), generator=generator) for _ in "ab")
    t = torch.tensor([2, 4, 3])
    together = diffusion.q_step(x_1, t), diffusion.q_marginal(x_1, t)
    posterior = diffusion.q_posterior(x_t, x_1, t)
    for i, at in enumerate(t.tolist()):
        one = slice(i, i + 1)
        assert torch.equal(together[0][one], diffusion.q_step(x_1[one], at))
        assert torch.equal(together[1][one], diffusion.q_marginal(x_1[one], at))
        expected = diffusion.q_posterior(x_t[one], x_1[one], at)
        torch.testing.assert_close(posterior[one], expected, rtol=0, atol=0, equal_nan=True)


# ── schedules ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("T", [2, 3, 9])
def test_geometric_falls_linearly(T):
    diffusion = MultinomialDiffusion(geometric(T), 4)
    steps = diffusion.alpha_bar[1:].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, -1 / (T - 1)))
    for t in range(2, T + 1):
        assert diffusion.beta[t] == pytest.approx(1 / (T - t + 1))


def test_attributes_are_indexed_by_the_papers_t():
    diffusion = MultinomialDiffusion([1.0, 0.5, 0.0], 4)
    assert diffusion.T == 3
    assert [len(v) for v in (diffusion.alpha_bar, diffusion.alpha, diffusion.beta)] == [4, 4, 4]
    assert diffusion.alpha_bar[0].isnan() and diffusion.beta[:2].isnan().all()
    assert diffusion.alpha_bar[1:].tolist() == [1.0, 0.5, 0.0]
    assert diffusion.beta[2:].tolist() == [0.5, 1.0] and diffusion.alpha[2:].tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    "alpha_bar",
    [
        [],
        [1.0],
        [1.0, 0.3],
        [0.9, 0.0],
        [1.0, 0.3, 0.6, 0.0],
        [1.0, 0.6, 0.6, 0.0],
        [1.0, 1.0, 0.0],
        [1.0, 0.0, 0.0],
        [1.0, -0.1, 0.0],
        [1.0, math.nan, 0.0],
        [1.0, 0.5, math.nan],
        [math.inf, 0.0],
    ],
)
def test_a_schedule_falls_from_one_to_zero(alpha_bar):
    with pytest.raises(ValueError, match="alpha_bar must fall from 1 to 0 with every step, got"):
        MultinomialDiffusion(alpha_bar, 4)


def test_what_is_no_chain_is_refused():
    with pytest.raises(ValueError, match="K must be at least 1, got 0"):
        MultinomialDiffusion([1.0, 0.0], 0)
    with pytest.raises(ValueError, match="T must be at least 2, got 1"):
        geometric(1)


@pytest.mark.parametrize("t", [-1, 0, 1, 4, torch.tensor([2, 4]), torch.tensor([1, 2])])
def test_t_lies_between_2_and_T(t):
    diffusion = MultinomialDiffusion([1.0, 0.5, 0.0], 4)
    x = torch.zeros(2, 3, dtype=torch.int64)
    for q in (diffusion.q_step, lambda x, t: diffusion.q_posterior(x, x, t)):
        with pytest.raises(ValueError, match=r"t must lie in \[2, 3\]"):
            q(x, t)


# ── drawing from it ───────────────────────────────────────────────────────────────────────────

DRAWS = 200_000


def assert_frequencies(drawn: torch.Tensor, q: torch.Tensor) -> None:
    """Every frequency within 5 standard deviations: false alarms below 6e-7 a number."""
    seen = torch.bincount(drawn.flatten(), minlength=len(q)).double() / drawn.numel()
    q = q.double()
    assert ((seen - q).abs() <= 5 * (q * (1 - q) / drawn.numel()).sqrt() + 1e-12).all()


@pytest.mark.parametrize("t", [2, 3, 4])
def test_draws_have_the_frequencies_of_q(t):
    """Fixed seeds. A 2 % error in β would move some frequency by 8 standard deviations."""
    diffusion = MultinomialDiffusion([1.0, 0.7, 0.35, 0.0], 5)
    x = torch.full((1, DRAWS), 3)
    code = torch.tensor([[3]])
    generator = torch.Generator().manual_seed(t)
    assert_frequencies(diffusion.q_sample_step(x, t, generator), diffusion.q_step(code, t)[0, 0])
    x_t = diffusion.q_sample_marginal(x, t, generator)
    assert_frequencies(x_t, diffusion.q_marginal(code, t)[0, 0])


@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_pair_is_drawn_from_the_joint(t):
    diffusion = MultinomialDiffusion([1.0, 0.7, 0.35, 0.0], 4)
    x_1 = torch.full((1, DRAWS), 2)
    x_prev, x_t = diffusion.q_sample_pair(x_1, t, torch.Generator().manual_seed(0))
    joint = marginal(diffusion, t - 1)[2, :, None] * transition(diffusion, t)
    assert_frequencies(4 * x_prev + x_t, joint.flatten())


def test_draws_differ_between_positions_and_follow_the_generator():
    diffusion = MultinomialDiffusion([1.0, 0.5, 0.0], 64)
    x = torch.zeros(2, 64, dtype=torch.int64)
    once, again, other = (
        diffusion.q_sample_marginal(x, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert not torch.equal(once[0], once[1]) and len(once.unique()) > 16


# ── the losses ────────────────────────────────────────────────────────────────────────────────


@given(chains(codes=8), st.data())
def test_the_kl_is_the_dense_one(diffusion, data):
    """Three values and two gathers against Σ_k q log q - q log p over all of K."""
    assume(diffusion.T > 2)
    t = data.draw(st.integers(3, diffusion.T))
    x_t, x_1 = pairs_of(diffusion)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = 3 * torch.randn(1, x_t.shape[1], diffusion.K, dtype=F64, generator=generator)
    kl = diffusion.posterior_kl(logits, x_t, x_1, t)
    dense = diffusion.posterior_kl_dense(logits, x_t, x_1, t)
    assert kl.isfinite().all() and (kl >= -1e-7).all()
    torch.testing.assert_close(kl, dense, rtol=0, atol=1e-9)


def test_the_kl_of_many_codes_is_the_dense_one_in_single_precision():
    diffusion = MultinomialDiffusion(geometric(4), 1024)
    x_1 = torch.randint(1024, (4, 32), generator=torch.Generator().manual_seed(0))
    x_t = diffusion.q_sample_marginal(x_1, 3, torch.Generator().manual_seed(1))
    logits = torch.randn(4, 32, 1024, generator=torch.Generator().manual_seed(2))
    kl = diffusion.posterior_kl(logits, x_t, x_1, 3)
    dense = diffusion.posterior_kl_dense(logits, x_t, x_1, 3)
    torch.testing.assert_close(kl, dense, rtol=1e-5, atol=1e-5)


@given(chains(codes=6), st.data())
def test_the_loss_is_zero_at_the_posterior_and_only_there(diffusion, data):
    assume(diffusion.T > 2 and diffusion.K > 1)
    t = data.draw(st.integers(3, diffusion.T))
    x_t, x_1 = pairs_of(diffusion)
    posterior = diffusion.q_posterior(x_t, x_1, t)
    logits = posterior.clamp(min=1e-30).log()
    assert diffusion.loss_t(logits, x_t, x_1, t).abs().max() <= 1e-9
    logits[..., 0] += 0.5
    undecided = (posterior[..., 0] > 0.01) & (posterior[..., 0] < 0.99)
    assert (diffusion.loss_t(logits, x_t, x_1, t)[undecided] > 1e-4).all()


def test_the_finest_loss_is_cross_entropy():
    """t = 2: x_1 is known, its posterior is a point, and eq. 7 becomes eq. 8."""
    diffusion = MultinomialDiffusion([1.0, 0.4, 0.0], 5, F64)
    x_t, x_1 = pairs_of(diffusion)
    logits = torch.randn(1, 25, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    loss = diffusion.loss_t(logits, x_t, x_1, 2)
    by_hand = torch.stack(
        [
            row.exp().sum().log() - row[code]
            for row, code in zip(logits[0], x_1[0].tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(loss[0], by_hand)
    torch.testing.assert_close(loss, cross_entropy(logits, x_1))
    torch.testing.assert_close(loss, diffusion.posterior_kl(logits, x_t, x_1, 2))


@pytest.mark.parametrize("alpha_bar", [[1.0, 0.0], geometric(3), [1.0, 0.9, 0.8, 0.2, 0.0]])
def test_the_terms_sum_to_the_bound(alpha_bar):
    """Eq. 2 in a world of one token: Σ_t E[L_t] against the chain counted out, path by path.

    E_q log q(x_{2:T} | x_1) / p_θ(x_{1:T}), which is never below -log p_θ(x_1).
    """
    K, T = 3, len(alpha_bar)
    diffusion = MultinomialDiffusion(alpha_bar, K, F64)
    generator = torch.Generator().manual_seed(T)
    logits = {t: torch.randn(K, K, dtype=F64, generator=generator) for t in range(2, T + 1)}
    Q = {t: transition(diffusion, t) for t in range(2, T + 1)}
    for x_1 in range(K):
        bound = likelihood = 0.0
        for path in itertools.product(range(K), repeat=T - 1):
            x = dict(zip(range(1, T + 1), (x_1, *path), strict=True))
            q = math.prod(Q[t][x[t - 1], x[t]].item() for t in range(2, T + 1))
            p = math.prod(logits[t][x[t]].softmax(-1)[x[t - 1]].item() for t in range(2, T + 1)) / K
            bound += q * math.log(q / p) if q else 0.0
            likelihood += p
        terms = 0.0
        for t in range(2, T + 1):
            x_t = torch.arange(K)[None]
            reached = marginal(diffusion, t)[x_1]
            loss = diffusion.loss_t(logits[t][None], x_t, torch.full((1, K), x_1), t)[0]
            terms += (reached * torch.where(reached > 0, loss, 0)).sum().item()
        assert terms == pytest.approx(bound, abs=1e-8)
        assert terms >= -math.log(likelihood) - 1e-12


def test_teacher_forcing_on_a_sample_gives_the_kl_of_sequences():
    """Two tokens, the second's logits depending on the first: the sum over teacher-forced prefixes
    is the KL of the two joint distributions."""
    K, t = 3, 3
    diffusion = MultinomialDiffusion(geometric(4), K, F64)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(K, dtype=F64, generator=generator)
    second = torch.randn(K, K, dtype=F64, generator=generator)
    x_1, x_t = torch.tensor([[0, 2]]), torch.tensor([[1, 2]])
    q = diffusion.q_posterior(x_t, x_1, t)[0]

    forced = 0.0
    for a in range(K):
        logits = torch.stack([first, second[a]])[None]
        forced += q[0, a] * diffusion.posterior_kl(logits, x_t, x_1, t).sum()

    joint_q = q[0][:, None] * q[1]
    joint_p = first.softmax(-1)[:, None] * second.softmax(-1)
    torch.testing.assert_close(forced, (joint_q * (joint_q / joint_p).log()).sum())


@given(chains(codes=6), st.data())
def test_the_closed_form_predictor_is_bayes_with_token_frequencies(diffusion, data):
    t = data.draw(st.integers(2, diffusion.T))
    K = diffusion.K
    counts = data.draw(st.lists(st.integers(1, 9), min_size=K, max_size=K))
    u = torch.tensor(counts, dtype=F64)
    joint = torch.einsum("a,ak,kb->bk", u, marginal(diffusion, t - 1), transition(diffusion, t))
    expected = joint / joint.sum(-1, keepdim=True)
    predicted = diffusion.closed_form_predictor(codes_of(diffusion), t, u)[0]
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-9)


def test_the_log_likelihood_is_that_of_the_step():
    diffusion = MultinomialDiffusion(geometric(4), 4, F64)
    log_q = diffusion.log_likelihood(torch.tensor([[2]]), 3)[0, 0]
    torch.testing.assert_close(log_q, transition(diffusion, 3)[:, 2].log())


def test_a_small_redraw_is_not_lost():
    """1 - (1 - 1e-20) is 0: so both numbers are passed."""
    q = keep_or_redraw(
        torch.tensor([[0]]), torch.tensor(1.0, dtype=F64), torch.tensor(1e-20, dtype=F64), 2
    )
    assert q[0, 0, 1] == 5e-21


def test_draws_come_from_the_generator_that_is_given():
    """The same again from the same seed, whatever the global generator has been through."""
    diffusion, x = MultinomialDiffusion(geometric(4), 50), torch.zeros(8, 16, dtype=torch.int64)

    def drawn() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        step = diffusion.q_sample_step(x, 3, generator)
        marginal = diffusion.q_sample_marginal(x, 3, generator)
        return [step, marginal, *diffusion.q_sample_pair(x, 3, generator)]

    before, first = torch.get_rng_state(), drawn()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(), strict=True))
