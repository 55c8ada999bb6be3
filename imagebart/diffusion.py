"""Forget: multinomial diffusion of tokens, x_1 → x_T.   [section 3.3]

A step keeps a token with probability α_t and redraws it from all K codes with β_t = 1 - α_t.
Nothing here is learned. The functions q_* return distributions, q_sample_* return tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imagebart.arguments import shown
from imagebart.notation import Float, Logits, PerPosition, Probs, Scales, Tokens


def keep_or_redraw(x: Tokens, keep: Tensor, redraw: Tensor, K: int) -> Probs:
    """Where a token lands if it is kept with probability `keep`, else redrawn from all K.

        keep · onehot(x) + redraw / K,      keep + redraw = 1

    Both are passed, since 1 - keep loses a small `redraw` to rounding.
    """
    return keep * F.one_hot(x, K) + redraw / K


def geometric(T: int) -> list[float]:
    """ᾱ_t = 1 - (t - 1) / (T - 1): β_t = 1 / (T - t + 1), so ᾱ falls linearly to 0."""
    if T < 2:
        raise ValueError(f"T must be at least 2, got {T}")
    return [1 - (t - 1) / (T - 1) for t in range(1, T + 1)]


class MultinomialDiffusion:
    """q(x_{1:T}): the forward chain, its marginals, its posterior and its losses.

    `alpha_bar` is ᾱ_1 .. ᾱ_T: from 1 to 0, and it falls with every step. The attributes
    `beta`, `alpha`, `alpha_bar` have length T + 1 and are indexed by the paper's t (float64; NaN
    where the paper defines nothing). Raises ValueError for any other schedule or for K < 1.
    """

    def __init__(self, alpha_bar: Sequence[float], K: int, dtype: torch.dtype = torch.float32):
        given = [float(a) for a in alpha_bar]
        bar = torch.tensor(given, dtype=torch.float64)
        falls = len(given) >= 2 and bool((bar[1:] < bar[:-1]).all())
        if not falls or given[0] != 1 or given[-1] != 0:
            raise ValueError(
                f"alpha_bar must fall from 1 to 0 with every step, got {shown(str(given))}"
            )
        if K < 1:
            raise ValueError(f"K must be at least 1, got {K}")
        self.K, self.T, self.dtype = K, len(given), dtype
        nan = torch.full((1,), torch.nan, dtype=torch.float64)
        alpha = bar[1:] / bar[:-1]
        beta = (bar[:-1] - bar[1:]) / bar[:-1]
        self.alpha_bar = torch.cat([nan, bar])
        self.alpha = torch.cat([nan, nan, alpha])
        self.beta = torch.cat([nan, nan, beta])

    # ── what the chain does to a token ────────────────────────────────────────────────────────

    def q_step(self, x_prev: Tokens, t: Scales) -> Probs:
        """q(x_t | x_{t-1}): one step of forgetting.   [eq. 5]

        (1 - β_t) · onehot(x_{t-1}) + β_t / K
        """
        return keep_or_redraw(x_prev, self._at(self.alpha, t), self._at(self.beta, t), self.K)

    def q_marginal(self, x_1: Tokens, t: Scales) -> Probs:
        """q(x_t | x_1): all steps up to t at once.   [eq. 6]

        ᾱ_t · onehot(x_1) + (1 - ᾱ_t) / K,      ᾱ_t = Π_{l=2}^{t} (1 - β_l)
        """
        bar = self.alpha_bar
        return keep_or_redraw(x_1, self._at(bar, t, 1), self._at(1 - bar, t, 1), self.K)

    def q_posterior(self, x_t: Tokens, x_1: Tokens, t: Scales) -> Probs:
        """q(x_{t-1} | x_t, x_1): what the coarser scale and the image say together.

            q(x_{t-1} | x_t, x_1)  ∝  q(x_t | x_{t-1}) · q(x_{t-1} | x_1)

        Keep-or-redraw is symmetric in its two tokens, so the likelihood, read as a function of
        x_{t-1}, is `q_step` centred on x_t.
        """
        joint = self.q_step(x_t, t) * self.q_marginal(x_1, t - 1)
        return joint / joint.sum(-1, keepdim=True)

    # ── drawing from it ───────────────────────────────────────────────────────────────────────

    def q_sample_step(
        self, x_prev: Tokens, t: Scales, generator: torch.Generator | None = None
    ) -> Tokens:
        """x_t ~ `q_step`."""
        return self._redraw(x_prev, self._at(self.beta, t).squeeze(-1), generator)

    def q_sample_marginal(
        self, x_1: Tokens, t: Scales, generator: torch.Generator | None = None
    ) -> Tokens:
        """x_t ~ `q_marginal`."""
        return self._redraw(x_1, self._at(1 - self.alpha_bar, t, 1).squeeze(-1), generator)

    def q_sample_pair(
        self, x_1: Tokens, t: Scales, generator: torch.Generator | None = None
    ) -> tuple[Tokens, Tokens]:
        """(x_{t-1}, x_t) ~ q: the pair that trains scale t, in two draws and not T."""
        x_prev = self.q_sample_marginal(x_1, t - 1, generator)
        return x_prev, self.q_sample_step(x_prev, t, generator)

    def _redraw(self, x: Tokens, chance: Tensor, generator: torch.Generator | None) -> Tokens:
        where = torch.rand(x.shape, generator=generator, device=x.device) < chance
        fresh = torch.randint(self.K, x.shape, generator=generator, device=x.device)
        return torch.where(where, fresh, x)

    # ── what a denoiser is asked to match ─────────────────────────────────────────────────────

    def log_likelihood(self, x_t: Tokens, t: Scales) -> Logits:
        """log q(x_t | x_{t-1} = k) for every k: what x_t alone says about the finer scale."""
        low = self._at(self.beta, t) / self.K
        high = self._at(self.alpha, t) + low
        low, high = (value.log().to(x_t.device, non_blocking=True) for value in (low, high))
        everywhere = low.expand(*x_t.shape, self.K)
        return everywhere.scatter(-1, x_t[..., None], high.expand(*x_t.shape, 1))

    def loss_t(self, logits: Logits, x_t: Tokens, x_1: Tokens, t: int) -> PerPosition:
        """L_t, nats per token: `cross_entropy` at t = 2, `posterior_kl` above."""
        if t == 2:
            return cross_entropy(logits.to(self.dtype), x_1)
        return self.posterior_kl(logits, x_t, x_1, t)

    def posterior_kl(self, logits: Logits, x_t: Tokens, x_1: Tokens, t: int) -> PerPosition:
        """KL( q(x_{t-1} | x_t, x_1) ‖ softmax(logits) ), nats per token.   [eq. 7]

        The posterior takes three values at most: at x_1, at x_t, and everywhere else. So the
        dense b×n×K target is never built (`posterior_kl_dense` is the reference).
        """
        at_1, at_t, rest = self._posterior_values(x_t, x_1, t)
        others = self.K - 1 - (x_t != x_1).to(rest.dtype)
        log_p = logits.to(self.dtype).log_softmax(-1)
        log_p_1, log_p_t = (log_p.gather(-1, x[..., None]).squeeze(-1) for x in (x_1, x_t))
        cross = rest * log_p.sum(-1) + (at_1 - rest) * log_p_1
        cross = cross + torch.where(x_t != x_1, (at_t - rest) * log_p_t, 0)
        entropy = -(at_1.xlogy(at_1) + others * rest.xlogy(rest))
        entropy = entropy - torch.where(x_t != x_1, at_t.xlogy(at_t), 0)
        return -cross - entropy

    def posterior_kl_dense(self, logits: Logits, x_t: Tokens, x_1: Tokens, t: int) -> PerPosition:
        """`posterior_kl` as it is defined, Σ_k q log q - q log p: the reference. Needs b×n×K."""
        q = self.q_posterior(x_t, x_1, t)
        return (q.xlogy(q) - q * logits.to(self.dtype).log_softmax(-1)).sum(-1)

    def closed_form_predictor(self, x_t: Tokens, t: Scales, frequency: Float[Tensor, "K"]) -> Probs:
        """p(x_{t-1}^i | x_t^i) from the token frequencies u alone: what a denoiser must beat.

        ∝ q(x_t^i | x_{t-1}^i) · Σ_{x_1} u(x_1) q(x_{t-1}^i | x_1)
        """
        bar = self.alpha_bar
        frequency = frequency.to(x_t.device)
        u = frequency.to(self.dtype) / frequency.sum()
        prior = self._at(bar, t - 1, 1) * u + self._at(1 - bar, t - 1, 1) / self.K
        joint = self.q_step(x_t, t) * prior
        return joint / joint.sum(-1, keepdim=True)

    # ── helpers ───────────────────────────────────────────────────────────────────────────────

    def _posterior_values(self, x_t, x_1, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior at x_1, at x_t, and at any other code, each (b, n)."""
        keep_t, noise_t = self._at(self.alpha, t), self._at(self.beta, t) / self.K
        bar = self.alpha_bar
        keep_1, noise_1 = self._at(bar, t - 1, 1), self._at(1 - bar, t - 1, 1) / self.K
        same = (x_t == x_1).to(self.dtype)
        values = keep_t, noise_t, keep_1, noise_1
        keep_t, noise_t, keep_1, noise_1 = (value.squeeze(-1) for value in values)
        at_1 = (keep_1 + noise_1) * (noise_t + same * keep_t)
        at_t = (noise_1 + same * keep_1) * (keep_t + noise_t)
        rest = noise_1 * noise_t
        other = (1 - same) * at_t + (self.K - 2 + same) * rest
        total = at_1 + other
        return at_1 / total, at_t / total, (rest / total).expand(x_t.shape)

    def _at(self, values: Tensor, t: Scales, lowest: int = 2) -> Tensor:
        """values[t], shaped to multiply b×n×K; raises ValueError unless lowest <= t <= T."""
        index = torch.as_tensor(t)
        if ((index < lowest) | (index > self.T)).any():
            raise ValueError(f"t must lie in [{lowest}, {self.T}], got {t}")
        value = values[index.cpu()].to(index.device, self.dtype)
        return value.reshape(-1, 1, 1) if index.ndim else value


def cross_entropy(logits: Logits, x_1: Tokens) -> PerPosition:
    """-log p_θ(x_1 | x_2), nats per token.   [eq. 8]"""
    return F.cross_entropy(logits.transpose(1, 2), x_1, reduction="none")
