"""A watch over ranks that wait for each other: when none goes on, a sentence names who is at fault.

A rank that hangs stops all others in their next collective operation, silently. So a thread of
every rank counts in the store where ranks met, and looks whether its own rank goes on.
"""

import os
import threading
import time

from training import say

from imagebart.distributed import Ranks


class Watchdog:
    """Ends this process if its rank makes no step for `timeout` seconds; use it as a context.

    Other threads of a rank that waits still count, those of a rank that was stopped do not: it is
    the one named. Of one rank there is nothing to watch.
    """

    def __init__(self, ranks: Ranks, timeout: float):
        self.ranks, self.timeout = ranks, timeout
        self.pause = timeout / 10
        self.step, self.last, self.count = 0, time.monotonic(), 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.ranks.store is not None:
            self.store = self.ranks.store.clone()  # a connection of its own: theirs may be waiting
            self.last = time.monotonic()
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    def beat(self, step: int) -> None:
        """This rank begins a step."""
        self.step, self.last = step, time.monotonic()

    def _watch(self) -> None:
        while not self.ended.wait(self.pause):
            self._show(1)
            waited = time.monotonic() - self.last
            if waited > self.timeout:
                who = self.blame()
                say(f"error: rank {self.ranks.rank}: {who}, {waited:.0f} s without a step")
                self._show(5)  # until the others have seen that this rank answers
                os._exit(1)  # the main thread waits in an operation that cannot be left

    def blame(self) -> str:
        """Who does not answer, or is at an earlier step than others."""
        before = self._counts()
        self._show(4)
        after = self._counts()
        silent = [rank for rank, count in after.items() if count == before[rank]]
        silent = [rank for rank in silent if rank != self.ranks.rank]
        steps = {rank: int(count.split()[1]) for rank, count in after.items()}
        late = [rank for rank, step in steps.items() if step < max(steps.values())]
        if silent:
            return f"{listed_ranks(silent)} does not answer"
        return (
            f"{listed_ranks(late)} lags behind" if late else f"no rank goes on at step {self.step}"
        )

    def _show(self, times: int) -> None:
        """Show that this rank answers, a pause after each time but the first."""
        for i in range(times):
            if i:
                time.sleep(self.pause)
            self.count += 1
            self.store.set(f"watched/{self.ranks.rank}", f"{self.count} {self.step}")

    def _counts(self) -> dict[int, str]:
        names = {rank: f"watched/{rank}" for rank in range(self.ranks.world)}
        return {
            rank: self.store.get(name).decode() if self.store.check([name]) else "0 0"
            for rank, name in names.items()
        }


def listed_ranks(ranks: list[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"
