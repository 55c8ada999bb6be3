"""How a token is chosen from logits: temperature, top-k, top-p (nucleus), min-p.   [section 3.3]

    x = argmax_k( filtered logits_k / temperature + noise_k )

Where the logits are a prediction of x_1 behind noise that x_{t-1} carries (`Denoiser.adds_noise`),
the filter acts on the prediction, before noise is added (`guidance.Filtered`): what the process
leaves open must stay open, or the next scale reads tokens that it has never learned from.
"""

import math
from dataclasses import dataclass, fields

import torch

from imagebart.notation import Logits, Tokens
from imagebart.options import ChainOptions, rows

COLDEST = 1e-30
"""The lowest temperature that divides logits up to 1e8 to float32 numbers; less is 0."""


@dataclass(frozen=True)
class Filter:
    """How one scale's logits become a choice; off by default. The options of these names."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            rows(ChainOptions)[name].check(value, name)

    def applied(self, logits: Logits) -> Logits:
        """Logits of the same codes, -inf where one is left out: at temperature 0, and at one so
        small that logits divided by it may be no numbers, all but the likeliest."""
        if self.temperature < COLDEST:
            best = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        return filtered(logits, self.top_k, self.top_p, self.min_p)


FILTERS = tuple(field.name for field in fields(Filter))
"""Names of the options of a filter."""


def draw(logits: Logits, noise: Logits, choose: Filter) -> Tokens:
    """argmax_k( filtered logits_k / temperature + noise_k )."""
    return (choose.applied(logits) + noise).argmax(-1)


def filtered(logits: Logits, top_k: int, top_p: float, min_p: float = 0.0) -> Logits:
    """-inf outside the k likeliest codes, outside the fewest that hold a mass of p, and where
    p_k < min_p · max p. Codes equal to the k-th likeliest stay, so ties keep more than k."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        outside = p.cumsum(-1) - p >= top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    if min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits
