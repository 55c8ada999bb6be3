"""A conditional draw at t = T, by importance resampling.   [section 4.3]

At t = T a token attends only to those before it, so masked tokens are sampled without the known
tokens after them: a sky without the land below. What the scale says of all its tokens is

    p(x^m | x^k)  ∝  Π_{i ∈ m} p(x^i | x^{<i})  ·  Π_{i ∈ k} p(x^i | x^{<i})

over masked tokens m and known tokens k. Masked tokens are drawn from the first product; the second
is the weight of what was drawn. So of several fillings, the particles, one is kept by its weight:
the known tokens after the mask choose what makes them probable. It needs no training and no judge,
holds for a mask of any shape, and approaches the conditional distribution as particles are added.

Weights of a hundred tokens differ by many nats. They are tempered, w ∝ p^γ with γ ≤ 1, so far that
the effective sample size 1 / Σ w² of M particles is at least 2, or (1 + M) / 2 of fewer than three:
the best of all is not a draw, nor is equal weight a choice.
"""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor

from imagebart.conditions import Condition
from imagebart.decodable import Decodable
from imagebart.notation import Float, Int, Mask, Tokens
from imagebart.sampling import generator_of, span


def known_log_probability(
    scale: Decodable, x_t: Tokens, x_prev: Tokens, condition: Condition | None, known: Mask
) -> Float[Tensor, "b"]:
    """Σ_{i ∈ k} log p(x_{t-1}^i | x_{t-1}^{<i}, x_t), in one pass; on the CPU, in float64.

    Known tokens before the first masked one are left out: they have no part in the choice.
    """
    first = int(span(x_t, known)[0].min())
    state = scale.start(x_t, condition)
    scale.read(x_prev, first, state)
    at = repeat(torch.arange(first, scale.n, device=x_t.device), "s -> b s", b=len(x_t))
    log_p = scale.step(x_prev, at, state).log_softmax(-1)
    each = log_p.gather(2, x_prev[:, first:, None])[..., 0]
    return each.masked_fill(~known[:, first:], 0).cpu().double().sum(1)


def tempered(log_p: Float[Tensor, "b j"], least: float | None = None) -> Float[Tensor, "b j"]:
    """Weights w_j ∝ p_j^γ of the particles of each image, with the largest γ ≤ 1 (by bisection)
    whose effective sample size is at least `least`, by default min(2, (1 + j) / 2)."""
    least = min(2.0, (1 + log_p.shape[1]) / 2) if least is None else least
    low, high = torch.zeros_like(log_p[:, :1]), torch.ones_like(log_p[:, :1])
    gamma = high
    for _ in range(40):
        enough = effective_size((gamma * log_p).softmax(1))[:, None] >= least
        low, high = torch.where(enough, gamma, low), torch.where(enough, high, gamma)
        gamma = (low + high) / 2
    return (low * log_p).softmax(1)


def effective_size(weights: Float[Tensor, "b j"]) -> Float[Tensor, "b"]:
    """1 / Σ_j w_j²: so many particles of equal weight would say as much."""
    return 1 / weights.square().sum(1)


def choose_by_weight(
    weights: Float[Tensor, "b j"], seeds: Sequence[int], t: int
) -> Int[Tensor, "b"]:
    """A particle of each image, by its weight and its image's seed."""
    chosen = [
        torch.multinomial(each.cpu(), 1, generator=generator_of(seed, t, 0, "particles"))
        for each, seed in zip(weights, seeds, strict=True)
    ]
    return torch.cat(chosen).to(weights.device)


def particle_seed(seed: int, index: int, t: int) -> int:
    """A seed for the noise of every particle: the image's own for the first."""
    if index == 0:
        return seed
    generator = generator_of(seed, t, index, "particle")
    return int(torch.randint(2**63 - 1, (), generator=generator))
