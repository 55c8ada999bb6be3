"""How loose is the bound? The importance-weighted estimate of log p_θ(x_1).   [eq. 2]

A chain x_{2:T} ~ q(· | x_1) has the weight w = p_θ(x_{1:T}) / q(x_{2:T} | x_1), whose mean is
p_θ(x_1). So of M independent chains

    -E log (w_1 + … + w_M) / M

is an upper bound of -log p_θ(x_1): that of eq. 2 for M = 1, and never larger for larger M (Burda et
al. 2016). What it gains on M = 1 is the least by which the bound of eq. 2 is loose.
"""

import torch
from torch import Tensor

from imagebart import ImageBART
from imagebart.conditions import Condition
from imagebart.notation import Float, Tokens


def log_weight(
    model: ImageBART, x_1: Tokens, condition: Condition | None, generator: torch.Generator
) -> Float[Tensor, "b"]:
    """log w of one chain drawn for each of x_1 (b, n), nats an image.

    x_T is noise in p_θ and in q alike, and drops out; so ᾱ_T must be 0 (ValueError).
    """
    diffusion, T = model.diffusion, model.T
    if diffusion.alpha_bar[T] > 0:
        raise ValueError(f"alpha_bar must end with 0, got {float(diffusion.alpha_bar[T]):g}")
    total = torch.zeros(len(x_1), dtype=torch.float64)
    x_prev = x_1
    for t in range(2, T + 1):
        x_t = diffusion.q_sample_step(x_prev.cpu(), t, generator).to(x_1.device)
        log_p = model.denoisers[t](x_prev, x_t, condition).double().log_softmax(-1)
        total += summed_at(log_p, x_prev)
        if t < T:
            total -= summed_at(diffusion.q_step(x_prev, t).double().log(), x_t)
        x_prev = x_t
    return total


def summed_at(log_p: Float[Tensor, "b n K"], x: Tokens) -> Float[Tensor, "b"]:
    """Σ_i log p(x^i), on the CPU."""
    return log_p.gather(-1, x[..., None]).squeeze(-1).sum(1).cpu()


def weighted(log_w: Float[Tensor, "*b M"]) -> Float[Tensor, "*b"]:
    """-log of the mean of M weights."""
    M = log_w.shape[-1]
    return torch.tensor(float(M)).log() - log_w.logsumexp(-1)
