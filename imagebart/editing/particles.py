"""A conditional draw at t = T, by importance resampling.   [section 4.3]

At t = T a token attends only to those before it, so masked tokens are sampled without the known
tokens after them: a sky without the land below. What the scale says of all its tokens is

    p(x^m | x^k)  ∝  Π_{i ∈ m} p(x^i | x^{<i})  ·  Π_{i ∈ k} p(x^i | x^{<i})

over masked tokens m and known tokens k. Masked tokens are drawn from the first product; the second
is the weight of what was drawn. So of several fillings, the particles, one is kept by its weight:
the known tokens after the mask choose what makes them probable. It needs no training and no judge,
holds for a mask of any shape, and approaches the conditional distribution as particles are added.

The weights are those of importance sampling as they are: where 1 / Σ w², the effective sample size,
is near 1, the known tokens leave one of the fillings, and which one differs from seed to seed.
"""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor

from imagebart.choice import COLDEST
from imagebart.conditions import Condition
from imagebart.decodable import Decodable
from imagebart.notation import Float, Int, Mask, Tokens
from imagebart.sampling import generator_of


def known_log_probability(
    scale: Decodable,
    x_t: Tokens,
    x_prev: Tokens,
    condition: Condition | None,
    known: Mask,
    temperature: float = 1.0,
) -> Float[Tensor, "b"]:
    """Σ_{i ∈ k} log p(x_{t-1}^i | x_{t-1}^{<i}, x_t), in two passes; on the CPU, in float64.

    p is of the temperature that masked tokens were drawn at, but for one near 0, which would leave
    known tokens no probability; for the same reason other filters have no part in it. Known tokens
    before the first masked one are left out: they have no part in the choice.
    """
    counted = known & (~known).cumsum(1).bool()
    first = int(counted.any(0).int().argmax())
    state = scale.start(x_t, condition)
    scale.read(x_prev, first, state)
    at = repeat(torch.arange(first, scale.n, device=x_t.device), "s -> b s", b=len(x_t))
    logits = scale.step(x_prev, at, state)
    log_p = (logits / (temperature if temperature >= COLDEST else 1)).log_softmax(-1)
    each = log_p.gather(2, x_prev[:, first:, None])[..., 0]
    return each.masked_fill(~counted[:, first:], 0).cpu().double().sum(1)


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
