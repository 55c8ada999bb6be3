"""In a world that can be listed, the bound is a sum of KL divergences of reverse processes."""

import pytest
import torch

from imagebart.diffusion import MultinomialDiffusion, cross_entropy, geometric
from imagebart.listed import (
    all_states,
    factorised,
    factorised_excess,
    forward_transitions,
    reverse_kl,
    reverse_transitions,
)

STATES = all_states(2, 3)
P = torch.tensor([0.40, 0.02, 0.02, 0.02, 0.25, 0.02, 0.02, 0.02, 0.23], dtype=torch.float64)


def chain(T: int) -> MultinomialDiffusion:
    return MultinomialDiffusion(geometric(T), 3, dtype=torch.float64)


def test_every_grid_is_listed_once():
    assert STATES.tolist() == [[i, j] for i in range(3) for j in range(3)]
    assert all_states(1, 4).tolist() == [[0], [1], [2], [3]]


def test_forward_transitions_chain_to_the_marginal():
    diffusion = chain(4)
    two = forward_transitions(diffusion, 2, STATES) @ forward_transitions(diffusion, 3, STATES)
    marginal = diffusion.q_marginal(STATES, 3)  # S n K
    expected = marginal[:, 0, STATES[:, 0]] * marginal[:, 1, STATES[:, 1]]
    torch.testing.assert_close(two, expected)


def test_reverse_transitions_lead_back_to_the_data():
    forward = forward_transitions(chain(3), 2, STATES)
    reverse = reverse_transitions(P, forward)
    torch.testing.assert_close(reverse.sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close((P @ forward) @ reverse, P)


def test_the_bound_above_the_entropy_is_the_sum_of_reverse_kls():
    diffusion, p, excess, bound = chain(3), P, 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    x_1, x_t = STATES.repeat_interleave(9, 0), STATES.repeat(9, 1)
    for t in (2, 3):
        forward = forward_transitions(diffusion, t, STATES)
        marginal = P[:, None] * diffusion.q_marginal(STATES, t)[:, torch.arange(2), STATES].prod(2)
        logits = torch.randn(9, 2, 3, generator=generator, dtype=torch.float64)  # of each x_t
        p_theta = logits.log_softmax(2)[:, torch.arange(2), STATES].sum(2).exp()
        excess += reverse_kl(p @ forward, reverse_transitions(p, forward), p_theta)
        loss = diffusion.loss_t(logits.repeat(9, 1, 1), x_t, x_1, t).sum(1)
        bound, p = bound + marginal.flatten() @ loss, p @ forward
    entropy = -(P @ P.log())
    torch.testing.assert_close(bound - entropy, excess)


def test_no_product_over_tokens_is_nearer_than_that_of_the_marginals():
    forward = forward_transitions(chain(3), 2, STATES)
    q, p_t = reverse_transitions(P, forward), P @ forward
    best = reverse_kl(p_t, q, factorised(q, STATES))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(9, 2, 3, generator=generator, dtype=torch.float64)
        other = -cross_entropy(logits.repeat_interleave(9, 0), STATES.repeat(9, 1)).sum(1)
        assert best < reverse_kl(p_t, q, other.reshape(9, 9).exp())


@pytest.mark.parametrize(("T", "nats"), [(2, 0.627), (3, 0.403), (9, 0.113), (129, 0.007)])
def test_a_factorised_chain_needs_many_steps(T, nats):
    assert factorised_excess(P, chain(T), STATES).item() == pytest.approx(nats, abs=5e-4)


def test_one_factorised_step_to_noise_misses_the_mutual_information():
    table = P.reshape(3, 3)
    information = (table * (table / table.sum(0) / table.sum(1, keepdim=True)).log()).sum()
    torch.testing.assert_close(factorised_excess(P, chain(2), STATES), information)
