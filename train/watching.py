"""A watch over ranks that wait for each other: when none goes on, a sentence names who is at fault.

A rank that hangs stops all others in their next collective operation, silently, and deaf to SIGTERM
(Python's handlers run between two of its own operations). So a thread of every rank counts in the
store where ranks met, looks whether its own rank goes on, and hears signals.
"""

import os
import select
import signal
import threading
import time
from contextlib import suppress

import torch.distributed as dist
from training import say

from imagebart.distributed import Ranks

STOP_SECONDS = 15.0
"""Seconds after SIGTERM in which a rank must end its step, if another one does not answer; torchrun
kills after 30 unless it is told another number."""
LONGEST_PAUSE = 2.0
"""Seconds between two looks, at most."""
STORE_SECONDS = 15.0
"""Seconds in which the store must say which ranks answer. Its own calls wait without end for a
machine that stands still."""


class Watchdog:
    """Ends this process if its rank makes no step for `timeout` seconds; use it as a context.

    It takes at most half a minute more to find out who is at fault and to say so.

    Other threads of a rank that waits still count, those of a rank that was stopped do not: it is
    the one named. A rank that was told to stop (SIGTERM) ends in STOP_SECONDS if it waits for one
    that does not answer. Of one rank there is nothing to watch.
    """

    def __init__(self, ranks: Ranks, timeout: float):
        self.ranks, self.timeout = ranks, timeout
        self.pause = min(timeout / 10, LONGEST_PAUSE)
        self.step, self.last, self.count = 0, time.monotonic(), 0
        self.stopping: float | None = None  # when SIGTERM came
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.ranks.store is not None:
            self.store = self.ranks.store.clone()  # a connection of its own: theirs may be waiting
            self.signals, self._wakes = os.pipe()
            os.set_blocking(self._wakes, False)
            self._woken_before = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
            self.last = time.monotonic()
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self.ranks.store is None:
            return
        self.ended.set()
        os.write(self._wakes, b"\0")
        self.thread.join()
        signal.set_wakeup_fd(self._woken_before)
        os.close(self.signals)
        os.close(self._wakes)

    def beat(self, step: int) -> None:
        """This rank begins a step."""
        self.step, self.last = step, time.monotonic()

    def _watch(self) -> None:
        while not self._hear(self.pause):
            waited = time.monotonic() - self.last
            try:
                self._show(1)
                if waited > self.timeout or self._is_late_to_stop():
                    silent, steps = self._answers()
                    if waited > self.timeout or silent:
                        self._end(self._blame(silent, steps), shown=5)
            except dist.DistError:  # ended with the launcher that had it
                if waited > self.timeout:
                    self._end("the store where ranks met does not answer")

    def _hear(self, seconds: float) -> bool:
        """Wait for signals so long; whether the watch has ended."""
        heard, _, _ = select.select([self.signals], [], [], seconds)
        if heard and signal.SIGTERM in os.read(self.signals, 64):
            self.stopping = time.monotonic()
        return self.ended.is_set()

    def _is_late_to_stop(self) -> bool:
        if self.stopping is None:
            return False
        return time.monotonic() - max(self.stopping, self.last) > STOP_SECONDS

    def _end(self, who: str, shown: int = 0) -> None:
        waited = time.monotonic() - self.last
        say(f"error: rank {self.ranks.rank}: {who}, {waited:.0f} s without a step")
        with suppress(dist.DistError):
            self._show(shown)  # until the others have seen that this rank answers
        os._exit(1)  # the main thread waits in an operation that cannot be left

    def _answers(self) -> tuple[list[int], dict[int, int]]:
        """`_others`; DistStoreError if the store has ended. One that holds its answer for
        STORE_SECONDS holds this process no longer."""
        answers: list[tuple[list[int], dict[int, int]]] = []

        def question() -> None:
            with suppress(dist.DistError):
                answers.append(self._others())

        asking = threading.Thread(target=question, name="watchdog's question", daemon=True)
        asking.start()
        asking.join(STORE_SECONDS)
        if asking.is_alive():
            self._end("the store where ranks met does not answer")
        if not answers:
            raise dist.DistStoreError("the store where ranks met has ended")
        return answers[0]

    def _others(self) -> tuple[list[int], dict[int, int]]:
        """The ranks that do not answer; the step of each rank."""
        before = self._counts()
        self._show(4)
        after = self._counts()
        silent = [rank for rank, count in after.items() if count == before[rank]]
        steps = {rank: int(count.split()[1]) for rank, count in after.items()}
        return [rank for rank in silent if rank != self.ranks.rank], steps

    def _blame(self, silent: list[int], steps: dict[int, int]) -> str:
        """Who does not answer, or is at an earlier step than others."""
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
