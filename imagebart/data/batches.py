"""Which images each step of a run uses: a pure function of (seed, step)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class Batches(Sampler):
    """Indices of the images of each step: step s is a pure function of (seed, s).

    Epoch e is a permutation of the `count` images drawn from (seed, e); batches continue across
    epochs, so every image is used once per epoch. `steps` is the length of the whole run and
    `start_step` the first step of this process, so a resumed run uses the same batches. `part` is
    this rank's slice of a global batch (`share`): the global batch does not depend on the number of
    ranks.

        DataLoader(data, batch_sampler=Batches(...))    or    tokens.batch(batches.at(step))
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int = 0,
        start_step: int = 0,
        steps: int = 1,
        part: slice = slice(None),
    ):
        if count < 1 or batch < 1:
            raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")
        if not 0 <= start_step <= steps:
            raise ValueError(f"start_step must lie in [0, steps], got {start_step} of {steps}")
        self.count, self.batch, self.seed, self.part = count, batch, seed, part
        self.start_step, self.steps = start_step, steps
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            yield self.at(step).tolist()

    def at(self, step: int) -> np.ndarray:
        """This rank's images of step `step`, int64."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)[self.part]
        epochs, places = np.divmod(places, self.count)
        parts = [self._order_of(e)[places[epochs == e]] for e in np.unique(epochs).tolist()]
        return np.concatenate(parts)

    def _order_of(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch; the last one is cached."""
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, generator.permutation(self.count)
        return self._order
