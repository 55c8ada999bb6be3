"""Laplace's equation on the unknown part of a picture, with the known pixels as its boundary.

    Δu = 0 where unknown,    u = x where known

u is the smoothest continuation, the minimum of Σ|∇u|²: every unknown pixel is the mean of its
neighbours. It serves twice: what is masked is filled from its surroundings before it is encoded
(`inpainting.MaskedImage`), and the colours of what was painted are shifted so that they continue
across the border (the membrane of Poisson image editing, Pérez et al. 2003; `pasting.membrane`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from imagebart.notation import Bool, Float

FEWEST_SWEEPS, MOST_SWEEPS, WORK = 8, 32, 2**19
"""Relaxations on a level of the pyramid: few where it is large, many where they cost nothing; WORK
pixels in all between these bounds."""


def harmonic(
    x: Float[Tensor, "b c H W"], unknown: Bool[Tensor, "1 1 H W"]
) -> Float[Tensor, "b c H W"]:
    """u: x where known, the solution of Laplace's equation where `unknown`, which is not read.

    The picture's own edge passes nothing on (∂u/∂n = 0). 0 if nothing is known.
    """
    if not unknown.any() or unknown.all():
        return x.masked_fill(unknown, 0)
    part = part_around(unknown)
    u = x.clone()
    u[part] = _solved(x[part].masked_fill(unknown[part], 0), unknown[part])
    return u


def part_around(mask: Bool[Tensor, "1 1 H W"]) -> tuple:
    """Index of the smallest part that has all pixels of a mask, and one more on each side."""
    return ..., extent(mask[0, 0].any(1)), extent(mask[0, 0].any(0))


def extent(line: Bool[Tensor, " n"]) -> slice:
    """The places of a line that are True, and one more at either end."""
    places = line.nonzero()
    return slice(max(int(places[0]) - 1, 0), int(places[-1]) + 2)


def _solved(
    x: Float[Tensor, "b c H W"], unknown: Bool[Tensor, "1 1 H W"]
) -> Float[Tensor, "b c H W"]:
    """u by a cascade: solved at half the size, where a place is the mean of its known pixels, then
    enlarged as a first guess, and relaxed."""
    *_, H, W = x.shape
    u = x
    if unknown.any() and H * W > 1:
        known = F.avg_pool2d((~unknown).to(x.dtype), 2, ceil_mode=True)
        mean = F.avg_pool2d(x, 2, ceil_mode=True) / known.clamp(min=1e-6)
        half = _solved(mean, known == 0)
        guess = F.interpolate(half, scale_factor=2, mode="bilinear")[..., :H, :W]
        sweeps = min(max(WORK // (H * W), FEWEST_SWEEPS), MOST_SWEEPS)
        u = _relaxed(torch.where(unknown, guess, x), unknown, sweeps)
    return u


def _relaxed(
    u: Float[Tensor, "b c H W"], unknown: Bool[Tensor, "1 1 H W"], sweeps: int
) -> Float[Tensor, "b c H W"]:
    """u ← the mean of the four neighbours where unknown, `sweeps` times; beyond the picture's edge
    the neighbour is the pixel itself."""
    for _ in range(sweeps):
        v = F.pad(u, (1, 1, 1, 1), mode="replicate")
        across, down = v[..., 1:-1, :-2] + v[..., 1:-1, 2:], v[..., :-2, 1:-1] + v[..., 2:, 1:-1]
        u = torch.where(unknown, (across + down) / 4, u)
    return u
