"""Muon: torch's steps, matrices of one shape together, in the run's precision."""

import pytest
import torch
from muon import Muon, alike
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs(dtype):
    """Steps of matrices of two shapes, and one without a gradient, but for bfloat16's rounding; and
    a state of torch's is gone on with."""
    shapes, rates = [(8, 24), (24, 8), (8, 24), (16, 16)], (0.3, 0.3, 0.3, 0.2, 0.1)
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    ours, torchs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    by = {"lr": 1.0, "weight_decay": 0.1}
    theirs = torch.optim.Muon(torchs, **by, adjust_lr_fn="match_rms_adamw")
    muon = Muon(ours, **by, dtype=dtype)
    for step, rate in enumerate(rates):
        for i, (p, q) in enumerate(zip(ours, torchs, strict=True)):
            generator = torch.Generator().manual_seed(10 * step + i)
            p.grad = torch.randn(p.shape, generator=generator) if i < 3 else None
            q.grad = None if p.grad is None else p.grad.clone()
        for optimiser in (muon, theirs):
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
    for p, q, x in zip(ours, torchs, start, strict=True):
        assert (p - q).norm() <= 0.015 * (q - x).norm()
    assert torch.equal(ours[3], start[3])
    muon.load_state_dict(theirs.state_dict())
    for p, q in zip(ours, torchs, strict=True):
        p.data.copy_(q)
    for optimiser in (muon, theirs):
        optimiser.step()
    assert all((p - q).norm() <= 0.02 * q.norm() for p, q in zip(ours, torchs, strict=True))


def test_it_makes_singular_values_alike():
    U = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    for x in (U, U.mT):
        values, (left, _, right) = torch.linalg.svdvals(alike(x)), torch.linalg.svd(x, False)
        assert 0.6 < values.min() < values.max() < 1.3
        assert (alike(x) - left @ right).norm() < 0.35 * (left @ right).norm()
