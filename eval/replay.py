"""Replay: a model with random weights is timed with the passes of a trained chain.

The number of passes of exact parallel decoding depends on the trained weights. A shape without
trained weights is therefore timed with a trained chain's passes: each is computed in full, and the
number of positions that it accepts is given.

    profile            number of passes of a trained chain in each tenth of a sequence
    pass_starts        the first position of each pass over n positions
    decode_replayed    computes every pass, and accepts the positions of the plan
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from imagebart import ImageBART
from imagebart.decodable import Decodable
from imagebart.sampling import decode_parallel

TENTHS = 10
BETWEEN, LAST = "t < T", "t = T"


def scale_group(t: int, T: int) -> str:
    return LAST if t == T else BETWEEN


def profile(model: ImageBART, images: int, seed: int) -> dict[str, list[float]]:
    """Passes that begin in each tenth of the positions, over n: {BETWEEN: ten, LAST: ten}.

    Means over images, one at a time, and over all scales t < T.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for i in range(images):
        starts: dict[int, list[int]] = {t: [] for t in model.denoisers}
        note = partial(note_start, starts)
        list(model.sample_steps(1, seed=seed + i, method=partial(decode_parallel, on_pass=note)))
        for t in range(model.T, 1, -1):
            n = model.denoisers[t].n
            tenths = np.bincount(np.array(starts[t]) * TENTHS // n, minlength=TENTHS) / n
            rows.setdefault(scale_group(t, model.T), []).append(tenths)
    return {kind: np.mean(tenths, axis=0).tolist() for kind, tenths in rows.items()}


def note_start(starts: dict[int, list[int]], t: int, at: torch.Tensor) -> None:
    """An `on_pass`: the first position of this pass, of the first image, goes to `starts[t]`."""
    starts[t].append(int(at[0, 0]))


def pass_starts(tenths: Sequence[float], n: int, window: int) -> list[int]:
    """The first position of every pass over n positions, with the density of `tenths`; from 0 on.

    A pass accepts at least one position and at most a window, so passes are added where `tenths`
    has too few.
    """
    begun = n * np.concatenate([[0.0], np.cumsum(tenths)])
    count = max(1, round(begun[-1]))
    order = np.arange(count)
    starts = np.interp(order / count * begun[-1], begun, np.linspace(0, n, TENTHS + 1))
    starts = np.floor(starts + 1e-6).astype(int)
    starts = np.minimum(np.maximum.accumulate(starts - order), n - count) + order
    return [s for first, end in pairwise([*starts.tolist(), n]) for s in range(first, end, window)]


class Agreeing(Decodable):
    """A scale whose passes are computed in full and accept the positions of the plan.

    Its logits reproduce the guess with certainty, except at the last position before the start of
    the next pass.
    """

    def __init__(self, scale: Decodable, starts: Sequence[int]):
        self.scale, self.starts = scale, torch.tensor([*starts, scale.n])
        self.n, self.K, self.t = scale.n, scale.K, scale.t
        self.start, self.read, self.keep = scale.start, scale.read, scale.keep

    def step(self, x_prev: torch.Tensor, at: torch.Tensor, state) -> torch.Tensor:
        """As `Decodable.step`."""
        logits = self.scale.step(x_prev, at, state)
        starts = self.starts.to(at.device)
        following = starts[torch.searchsorted(starts, at[:, :1].contiguous(), right=True)]
        guess = x_prev.gather(1, at)
        drawn = torch.where(at == following - 1, (guess + 1) % self.K, guess)
        return logits.scatter(2, drawn[..., None], 1e9)


def plans_of(model: ImageBART, tenths: dict[str, list[float]], window: int) -> dict[int, list[int]]:
    """{t: the plan of that scale} for the passes of a profile."""
    kinds = {scale_group(t, model.T) for t in model.denoisers}
    if not kinds <= tenths.keys():
        raise ValueError(f"passes must be known for {sorted(kinds)}, got {sorted(tenths)}")
    return {
        t: pass_starts(tenths[scale_group(t, model.T)], denoiser.n, window)
        for t, denoiser in model.denoisers.items()
    }


def decode_replayed(
    plans: dict[int, list[int]], scale: Decodable, *args, **options
) -> torch.Tensor:
    """`decode_parallel`, with the passes of these plans."""
    return decode_parallel(Agreeing(scale, plans[scale.t]), *args, **options)
