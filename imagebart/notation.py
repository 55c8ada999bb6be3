"""The paper's symbols, once: what each letter is called here, and the shapes it has.

    paper            code                 meaning
    x_0              image, x_0           the image, values in [-1, 1]
    x_1              x_1                  its tokens, {0 .. K-1}, read in raster order
    x_t, x_{t-1}     x_t, x_prev          tokens of scale t, and of the next finer scale
    t, T             t, T                 scale, 2 <= t <= T; chain length (T - 1 transformers)
    β_t              beta[t]              chance that a token is redrawn at step t
    α_t = 1 - β_t    alpha[t]             chance that it is kept
    ᾱ_t              alpha_bar[t]         chance that it is still x_1's at scale t
    K, N = h·w       K, n                 size of the codebook; tokens of an image
    q(·)             q_step, q_marginal, q_posterior
    p_θ^{t-1}        denoisers[t]         the transformer that undoes step t
    m                masked (True = sampled), known (True = fixed)

Shapes: b batch, n tokens, h w token grid, H W pixels, c channels, K codes, m prefix and context.
"""

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "b 3 H W"]
"""x_0: pixels in [-1, 1]."""

Latents = Float[Tensor, "b c h w"]
"""z or z_q: feature maps before or after quantisation."""

Grid = Int[Tensor, "b h w"]
"""Tokens laid out as the image is."""

Tokens = Int[Tensor, "b n"]
"""Tokens in raster order."""

Mask = Bool[Tensor, "b n"]
"""One truth value a token, named by what True means: `masked`, `known`."""

Probs = Float[Tensor, "b n K"]
"""A distribution over the codes at every position; rows sum to one."""

Logits = Float[Tensor, "b n K"]
"""Unnormalised log-probabilities at every position."""

Scales = int | Int[Tensor, "b"]
"""t: one scale, or one for each image."""

PerPosition = Float[Tensor, "b n"]
"""One number a token, e.g. nats."""

Function = TypeVar("Function", bound=Callable)
"""What a decorator takes and gives back: its type stays the same."""
