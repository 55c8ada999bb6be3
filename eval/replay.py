"""The passes of a trained chain, taken by another model: how random weights are timed in parallel.

How many passes exact parallel decoding takes is a matter of what the weights have learned. A shape
without trained weights is therefore timed with a trained chain's passes: each is computed in full,
and then told how many of its positions to settle.

    profile     how many passes a trained chain spends in each tenth of a sequence
    plan        where each pass over n positions then begins
    Replayed    a chain that computes every pass, and settles what the plan says
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch

from imagebart import ImageBART, sampling
from imagebart.denoiser import Denoiser

TENTHS = 10
BETWEEN, LAST = "t < T", "t = T"


def kind_of(t: int, T: int) -> str:
    return LAST if t == T else BETWEEN


def profile(model: ImageBART, images: int, seed: int) -> dict[str, list[float]]:
    """Passes that begin in each tenth of the positions, over n: {BETWEEN: ten, LAST: ten}.

    Means over images, one at a time, and over all scales t < T.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for i in range(images):
        steps = model.sample_steps(1, seed=seed + i, method="parallel")
        next(steps)
        for t in range(model.T, 1, -1):
            with recorded_starts() as starts:
                next(steps)
            n = model.denoisers[t].n
            tenths = np.bincount(np.array(starts) * TENTHS // n, minlength=TENTHS) / n
            rows.setdefault(kind_of(t, model.T), []).append(tenths)
    return {kind: np.mean(tenths, axis=0).tolist() for kind, tenths in rows.items()}


@contextmanager
def recorded_starts() -> Iterator[list[int]]:
    """The first position of every pass, of the first image, while this is open."""
    starts, step = [], Denoiser.step

    def recording(self, x_prev, at, *rest):
        starts.append(int(at[0, 0]))
        return step(self, x_prev, at, *rest)

    Denoiser.step = recording
    try:
        yield starts
    finally:
        Denoiser.step = step


def plan(tenths: Sequence[float], n: int, window: int) -> list[int]:
    """The first position of every pass over n positions, as densely as `tenths` say; from 0 on.

    A pass settles one position at least and a window at most: where `tenths` say less, passes are
    added.
    """
    begun = n * np.concatenate([[0.0], np.cumsum(tenths)])
    count = max(1, round(begun[-1]))
    order = np.arange(count)
    starts = np.interp(order / count * begun[-1], begun, np.linspace(0, n, TENTHS + 1))
    starts = np.floor(starts + 1e-6).astype(int)
    starts = np.minimum(np.maximum.accumulate(starts - order), n - count) + order
    return [s for first, end in pairwise([*starts.tolist(), n]) for s in range(first, end, window)]


class Agreeing:
    """A denoiser whose passes are computed in full, and then settle what the plan says.

    Its logits are so sure of the guess that it is drawn again, but for the last position before
    the next pass is to begin.
    """

    def __init__(self, denoiser: Denoiser, starts: Sequence[int]):
        self.denoiser, self.starts = denoiser, torch.tensor([*starts, denoiser.n])

    def __getattr__(self, name: str):
        return getattr(self.denoiser, name)

    def step(self, x_prev: torch.Tensor, at: torch.Tensor, decoding) -> torch.Tensor:
        """As `Denoiser.step`."""
        logits = self.denoiser.step(x_prev, at, decoding)
        starts = self.starts.to(at.device)
        following = starts[torch.searchsorted(starts, at[:, :1].contiguous(), right=True)]
        guess = x_prev.gather(1, at)
        drawn = torch.where(at == following - 1, (guess + 1) % self.denoiser.K, guess)
        return logits.scatter(2, drawn[..., None], 1e9)


class Replayed(ImageBART):
    """A chain that takes the passes of a profile, whatever its weights."""

    def __init__(self, model: ImageBART, tenths: dict[str, list[float]]):
        kinds = {kind_of(t, model.T) for t in model.denoisers}
        if not kinds <= tenths.keys():
            raise ValueError(f"passes must be known for {sorted(kinds)}, got {sorted(tenths)}")
        super().__init__(model.vqgan, model.diffusion, model.denoisers)
        width = sampling.window(model.device)
        self.plans = {
            t: plan(tenths[kind_of(t, self.T)], denoiser.n, width)
            for t, denoiser in model.denoisers.items()
        }

    @property
    def denoisers(self) -> dict[int, Agreeing]:
        return {t: Agreeing(d, self.plans[t]) for t, d in super().denoisers.items()}
