"""The importance-weighted estimate, in a world where p_θ(x_1) can be listed."""

from types import SimpleNamespace

import importance
import pytest
import torch

from imagebart.listed import all_states

STATES, T = all_states(3, 3), 3


@pytest.fixture(scope="module")
def small(make_denoiser):
    """A chain over 1×3 tokens of 3 codes: 27 grids."""
    scales = {t: make_denoiser(t, T, 3, 0, grid=(1, 3)) for t in (2, 3)}
    return SimpleNamespace(T=T, diffusion=scales[2].diffusion, denoisers=scales)


def listed(model) -> torch.Tensor:
    """p_θ(x_1) of every grid: Σ over x_2 and x_3 of p(x_3) p(x_2 | x_3) p(x_1 | x_2)."""
    S = len(STATES)
    p = torch.full((S,), 1 / S, dtype=torch.float64)
    for t in (3, 2):
        x_prev, x_t = STATES.repeat(S, 1), STATES.repeat_interleave(S, 0)
        log_p = model.denoisers[t](x_prev, x_t).double().log_softmax(-1)
        p = p @ importance.summed_at(log_p, x_prev).reshape(S, S).exp()
    return p


def weights(model, x_1, count: int) -> torch.Tensor:
    """log w of so many chains of one grid."""
    generator = torch.Generator().manual_seed(0)
    return importance.log_weight(model, x_1.expand(count, -1), None, generator)


def test_weights_have_the_mean_p(small):
    p, count = listed(small), 20_000
    assert p.sum().item() == pytest.approx(1)
    for i in (0, 13, 22):
        w = weights(small, STATES[i], count).exp()
        assert abs(w.mean() - p[i]) < 4 * w.std() / count**0.5
        assert w.std() / count**0.5 < 0.05 * p[i], "too few chains to tell"


def test_more_chains_bound_closer_and_never_beyond(small):
    """M = 1 is the bound of eq. 2: the sum of its KL terms over the same noise, on average."""
    at, count = 22, 16_384
    exact = -listed(small)[at].log().item()
    log_w = weights(small, STATES[at], count)
    bounds = [importance.weighted(log_w.reshape(-1, M)).mean().item() for M in (1, 4, 16, 64)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] - bounds[-1] > 0.05 and abs(bounds[-1] - exact) < 0.02
    generator, x_1, total = torch.Generator().manual_seed(1), STATES[at].expand(count, -1), 0.0
    for t in (2, 3):
        x_prev, x_t = small.diffusion.q_sample_pair(x_1, t, generator)
        logits = small.denoisers[t](x_prev, x_t)
        total += small.diffusion.loss_t(logits, x_t, x_1, t).sum(1).mean().item()
    assert bounds[0] == pytest.approx(total, abs=0.05)


def test_a_chain_that_does_not_end_in_noise_is_refused(small):
    short = SimpleNamespace(T=2, diffusion=small.diffusion, denoisers=small.denoisers)
    with pytest.raises(ValueError, match=r"alpha_bar must end with 0, got 0\.5"):
        importance.log_weight(short, STATES[:1], None, torch.Generator())
