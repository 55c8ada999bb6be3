"""Saves of a run: a copy of its state, which a thread writes while the run goes on. And whether
that state is fit to be saved."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from training import say

from imagebart import distributed

MOST_FAILURES = 3
"""Saves in a row that may fail before the run ends."""
MOST_SKIPPED = 10
"""Steps in a row whose losses or gradients may be no numbers before the run goes back."""
CHECK_EVERY = 100
"""Steps between two comparisons of the ranks' weights."""


class Saver:
    """Writes in a thread, one save after another; a save that fails is said, and the run goes on.

        with Saver() as saver:
            saver.start(step, lambda: checkpoints.save(step, state))

    The block ends when the last save has ended. ValueError after MOST_FAILURES in a row (a full
    disk, say), and at the end of the run if the last one failed.
    """

    def __init__(self):
        self.thread: threading.Thread | None = None
        self.failures: list[str] = []
        self.error: Exception | None = None  # of a fault that is no disk's

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.wait()
        if kind is None:
            self.require(at_most=0)

    def start(self, step: int, write: Callable[[], Any]) -> None:
        """Begin a save; waits for the one before."""
        self.wait()
        self.require(at_most=MOST_FAILURES - 1)
        self.thread = threading.Thread(target=self._run, args=(step, write), name="save")
        self.thread.start()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def require(self, at_most: int) -> None:
        """ValueError if more of the last saves than that failed."""
        if self.error is not None:
            raise self.error
        if len(self.failures) > at_most:
            raise ValueError(
                f"a run must be saved now and then, got {len(self.failures)} failed saves in a "
                f"row, the last: {self.failures[-1]}"
            )

    def _run(self, step: int, write: Callable[[], Any]) -> None:
        try:
            write()
            self.failures.clear()
        except OSError as error:
            self.failures.append(str(error))
            say(f"step {step} could not be saved, the run goes on: {error}")
        except Exception as error:
            self.error = error


def snapshot(state: Any) -> Any:
    """A copy on the CPU of all tensors in nested dictionaries, lists and tuples.

    Of a GPU's tensors into pinned memory, which is copied at the speed of the bus.
    """

    def copied(x: Tensor) -> Tensor:
        held = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
        return held.copy_(x.detach(), non_blocking=True)

    copy = distributed.with_tensors(state, copied)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copy


class Skips:
    """Counts steps whose gradients were not finite, on the device: no step waits for its numbers.

    `all` of them, and the `most` in a row since `begin_anew`.
    """

    def __init__(self, device: torch.device):
        self.all, self.most, self.in_a_row = torch.zeros(3, 1, dtype=torch.int64, device=device)

    def note(self, finite: Tensor) -> None:
        """A step's gradients were finite, or not: a truth of no dimensions."""
        skipped = (~finite).long()
        self.all += skipped
        self.in_a_row += 1
        self.in_a_row *= skipped
        torch.maximum(self.most, self.in_a_row, out=self.most)

    def know(self, before: int) -> None:
        """A checkpoint says that there were `before` of them."""
        self.all.clamp_(min=before)

    def begin_anew(self) -> None:
        """Nothing in a row."""
        self.most.zero_()
        self.in_a_row.zero_()


def without_infinite(parameters: Iterable[Tensor], norm: Tensor) -> Tensor:
    """Whether gradients of this norm are finite; if not they become zero, and their optimiser goes
    along its momentum alone.

    The one rule for all networks. Nothing waits for a number of the device, and ranks, which share
    gradients, decide alike.
    """
    finite = norm.isfinite()
    for p in parameters:
        if p.grad is not None:
            p.grad.masked_fill_(~finite, 0)
    return finite


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers that this rank holds are."""
    here = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]  # of shards, its own
    floats = [x.detach() for x in here if x.is_floating_point() and x.numel()]
    largest = [x.float() for x in torch._foreach_norm(floats, float("inf"))] if floats else []
    return all(torch.stack(largest).isfinite().tolist()) if largest else True


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """A whole number that one flipped bit changes, the same on all ranks that hold the same."""
    views = [x.detach().contiguous().flatten().view(torch.uint8) for x in tensors if x.numel()]
    whole = [x.view(torch.int32) if x.numel() % 4 == 0 else x for x in views]
    sums = torch.stack([x.sum(dtype=torch.int64) for x in whole])
    places = torch.arange(1, len(sums) + 1, device=sums.device)
    return int((sums * places).sum())
