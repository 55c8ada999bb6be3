"""Muon: a step along the momentum of a layer's matrix whose singular values are made alike.

    M ← μ M + (1 - μ) G                                momentum of the gradient G
    U = μ M + (1 - μ) G                                Nesterov's look ahead
    W ← (1 - η λ) W - 0.2 η √max(r, c) · O,    O ≈ (U Uᵀ)^(-1/2) U,    W of r rows and c columns

(K. Jordan et al., 2024; 0.2 √max(r, c) makes a step as long as Adam's: J. Liu et al., 2025.) The
steps are those of torch.optim.Muon with `match_rms_adamw`. But matrices of one shape are computed
together, so a GPU has a tenth of the launches; and O is computed in the precision of the run, where
torch's is always in bfloat16: on a processor that has no such products a step took minutes.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATION = (3.4445, -4.775, 2.0315)
"""Of `alike`: singular values s → a s + b s³ + c s⁵, five times, which brings all to about 1."""


class Muon(torch.optim.Optimizer):
    """For `matrices`, which are parameters of two dimensions; `dtype` is what O is computed in."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for W in of_one_shape(group["params"]):
                rate, longest = group["lr"], max(W[0].shape)
                even = alike(self._ahead(W).to(self.dtype)).to(W[0].dtype)
                torch._foreach_mul_(W, 1 - rate * group["weight_decay"])
                torch._foreach_add_(W, even.unbind(), alpha=-0.2 * rate * longest**0.5)

    def _ahead(self, W: list[nn.Parameter]) -> Tensor:
        """U of matrices of one shape, k×r×c; M moves."""
        G = [w.grad for w in W]
        M = [self.state[w].setdefault("momentum_buffer", torch.zeros_like(w)) for w in W]
        torch._foreach_lerp_(M, G, 1 - MOMENTUM)
        return torch.stack(torch._foreach_lerp(G, M, MOMENTUM))


def of_one_shape(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those that have a gradient, in lists of one shape."""
    learned = [p for p in parameters if p.grad is not None]
    for _, same in groupby(sorted(learned, key=lambda p: p.shape), key=lambda p: p.shape):
        yield [*same]


def alike(U: Tensor) -> Tensor:
    """(U Uᵀ)^(-1/2) U of matrices k×r×c, nearly: the same singular vectors, values of 0.7 to 1.2.

    By five Newton-Schulz iterations, X → a X + (b X Xᵀ + c (X Xᵀ)²) X.
    """
    a, b, c = ITERATION
    X = U if U.shape[1] <= U.shape[2] else U.mT
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(square, square, square, beta=b, alpha=c), X, beta=a)
    return X if U.shape[1] <= U.shape[2] else X.mT
