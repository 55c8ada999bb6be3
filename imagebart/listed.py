"""A world that can be listed: all grids of a few tokens, so that every sum over them is exact.

Distributions over grids are vectors over `states`, chains of them are matrices. A world of n tokens
and K codes has K^n states, so this is for K^n of some thousands at most: to check a bound, not to
train.
"""

import torch

from imagebart.diffusion import MultinomialDiffusion
from imagebart.notation import Float, Int

States = Int[torch.Tensor, "S n"]
"""Every grid of n tokens, one a row."""

Distribution = Float[torch.Tensor, "S"]
"""A probability for each state."""

Transitions = Float[torch.Tensor, "S S"]
"""A distribution over the second axis for each state of the first."""


def all_states(n: int, K: int) -> States:
    """The K^n grids of n tokens, the last token changing fastest."""
    return torch.cartesian_prod(*[torch.arange(K)] * n).reshape(-1, n)


def forward_transitions(diffusion: MultinomialDiffusion, t: int, states: States) -> Transitions:
    """q(x_t | x_{t-1}) of whole grids, (x_{t-1}, x_t): the product of `q_step` over tokens."""
    step = diffusion.q_step(states, t)  # S n K
    at = states.T[None].expand(len(states), -1, -1)  # S n S
    return step.gather(2, at).prod(1)


def reverse_transitions(p: Distribution, forward: Transitions) -> Transitions:
    """q(x_{t-1} | x_t), (x_t, x_{t-1}), by Bayes' rule from p(x_{t-1}) and q(x_t | x_{t-1})."""
    joint = p[:, None] * forward
    return (joint / joint.sum(0)).T


def factorised(q: Transitions, states: States) -> Transitions:
    """Π_i q(x_{t-1}^i | x_t): the best that draws its tokens independently, as in DDPM.

    Of all products over tokens, that of the marginals has the least KL divergence from q.
    """
    K = int(states.max()) + 1
    tokens = torch.nn.functional.one_hot(states, K).to(q.dtype)  # S n K
    marginals = torch.einsum("ts,snk->tnk", q, tokens)
    at = states.T[None].expand(len(q), -1, -1)
    return marginals.gather(2, at).prod(1)


def reverse_kl(p_t: Distribution, q: Transitions, p_theta: Transitions) -> Float[torch.Tensor, ""]:
    """E_{x_t} KL( q(x_{t-1} | x_t) ‖ p_θ^{t-1}(x_{t-1} | x_t) ), nats per grid.   [eq. 9]

    One term of its sum. `p_t` is q(x_t); 0 where p_θ is the true reverse process.
    """
    return p_t @ (q.xlogy(q) - q.xlogy(p_theta)).sum(1)


def factorised_excess(
    p: Distribution, diffusion: MultinomialDiffusion, states: States
) -> Float[torch.Tensor, ""]:
    """How far the bound of a chain of `factorised` reverse models stays above H(p), at best.

    Σ_{t=2}^{T} `reverse_kl`, nats per grid, for p(x_1) = `p`.
    """
    total = torch.zeros((), dtype=p.dtype)
    for t in range(2, diffusion.T + 1):
        forward = forward_transitions(diffusion, t, states)
        q, p_t = reverse_transitions(p, forward), p @ forward
        total, p = total + reverse_kl(p_t, q, factorised(q, states)), p_t
    return total
