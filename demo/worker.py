"""The model's only thread, and the queue of jobs before it.

A job is a generator that runs the model. The jobs of all endpoints run in one thread, one after
another, so that the model is never used twice at once. The visitor who was served least recently
goes first, and each has a share of the places in the queue. A job ends early when its visitor stops
it or leaves, or when its time is over: that is checked before every layer of every network, so the
model is free within one layer, and the stopped step never runs beside the next.

Jobs that are alike run as one batch, which takes less time than one after another. Those whose jobs
end together may all come again, one a moment after another: the next batch waits a little for them.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from torch import nn

MOST_WAITING = 64
MOST_TOGETHER = 8
"""Images of a batch of jobs; with more, the first ones come too late."""
GATHERING, MOST_GATHERING = 0.1, 0.5
"""How long a batch waits to be as large as the last one: part of that one's time, and seconds."""
SHARE_OF_ADDRESS = 48
"""Places in the queue for one address, which may be a whole school behind its router."""
SHARE_OF_SESSION = 8
"""Places in the queue for one page or one client."""
JOB_ENDED = object()
"""Follows what a job has yielded."""
AHEAD = 4
"""Results that a job may be ahead of what its visitor has been sent."""
PATIENCE = 10.0
"""Seconds after which a job that nobody has listened to is dropped."""
STOPPING = "this server is stopping"
QUEUE_FULL = "too many visitors are waiting, try again in a minute"
SHARE_USED = "too many of your own requests are waiting, try again when one of them is done"


class Refused(ValueError):
    """There is no place in the queue; `full` if there is none for anybody."""

    def __init__(self, full: bool):
        super().__init__(QUEUE_FULL if full else SHARE_USED)
        self.full = full


class CutShort(ValueError):
    """The server has ended a job: it took too long, or the server stops."""


class Ended(BaseException):
    """Raised inside a job that should end; no `except Exception` may keep it running."""


@dataclass(frozen=True)
class Work:
    """What a job does.

    run: yields, for requests (one for each job), lists of an output for each; an exception among
    them ends that job, None is no output. Work of the same `key` may run together, of
    at most `MOST_TOGETHER` sizes in all; without a key it runs alone.
    """

    run: Callable[[list], Iterator[list]]
    request: Any = None
    key: Hashable = None
    size: int = 1


def alone(steps: Callable[[], Iterator]) -> Work:
    """Work that yields what `steps()` yields."""

    def run(_: list) -> Iterator[list]:
        with closing(steps()) as outputs:
            for output in outputs:
                yield [output]

    return Work(run)


@dataclass(eq=False)
class Job:
    """A job in the queue; `keys` are its session and its event, under which it is listened to."""

    work: Work
    address: str
    keys: tuple[str, str]
    number: int
    joined: float
    post: Callable[[tuple[Any, Exception | None]], None]
    deadline: float = inf
    heard: bool = False
    cancelled: bool = False
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AHEAD))

    @property
    def session(self) -> tuple[str, str]:
        return self.address, self.keys[0]


@dataclass(frozen=True)
class LastBatch:
    """Key and size of its work, and until when the next batch waits for as much."""

    key: Hashable = None
    size: int = 0
    until: float = 0.0


class Worker:
    """Runs jobs on `models` (None is no model), each for at most `seconds`.

    The thread starts with the first job. `stop` ends it; jobs are refused from then on.
    """

    def __init__(self, *models: nn.Module | None, seconds: float = inf):
        self.models, self.seconds = [model for model in models if model is not None], seconds
        self.changed = threading.Condition()
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.served: dict[Any, int] = {}
        self.listeners: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.busy = 0.0
        self.last = LastBatch()
        self.joined = self.turns = 0
        self.stopped = False
        self.thread: threading.Thread | None = None

    # ── from the event loop ───────────────────────────────────────────────────────────────────

    async def results(
        self, work: Work, address: str = "", session: str = "", event: str = ""
    ) -> AsyncIterator:
        """The outputs of `work`, run in the model's thread once its turn has come.

        Raises Refused at once if there is no place in the queue, CutShort if the server ends the
        job, and what the work raises. Closing the iterator ends the job.
        """
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue()
        post = partial(loop.call_soon_threadsafe, inbox.put_nowait)
        job = self.join(work, address, (session, event), post)
        try:
            while True:
                item, error = await inbox.get()
                if error is not None:
                    raise error
                if item is JOB_ENDED:
                    return
                yield item
                job.room.release()
        finally:
            self.cancel(job)

    def join(self, work: Work, address: str, keys: tuple[str, str], post: Callable) -> Job:
        """Take a place at the end of the queue; Refused if there is none."""
        with self.changed:
            self.refuse_overload(address, keys[0])
            self.joined += 1
            job = Job(work, address, keys, self.joined, time.monotonic(), post)
            job.heard = any(self.listeners[key] for key in keys)
            for one in (job.address, job.session):
                self.served.setdefault(one, self.turns)
            self.waiting.append(job)
            if self.thread is None:
                self.thread = threading.Thread(target=self.work, name="model", daemon=True)
                self.thread.start()
            self.changed.notify_all()
            return job

    def refuse_overload(self, address: str, session: str) -> None:
        """Raise Refused if a job of this visitor would have no place in the queue; clients without
        a session, "", share the places of one."""
        with self.changed:
            self.drop_ended()
            of_address = [job for job in self.waiting if job.address == address]
            of_session = [job for job in of_address if job.keys[0] == session]
            full = self.stopped or len(self.waiting) >= MOST_WAITING
            share = len(of_session) >= SHARE_OF_SESSION or len(of_address) >= SHARE_OF_ADDRESS
            if full or share:
                self.counts["refused"] += 1
                raise Refused(full)

    def cancel(self, job: Job) -> None:
        with self.changed:
            job.cancelled = True
            self.drop_ended()

    @contextmanager
    def listening(self, key: str) -> Iterator[None]:
        """While a visitor listens to a session or an event; its jobs end when all have left."""
        with self.changed:
            self.listeners[key] += 1
            for job in self.unfinished():
                job.heard |= key in job.keys
        try:
            yield
        finally:
            with self.changed:
                self.listeners[key] -= 1
                if not self.listeners[key]:
                    del self.listeners[key]
                self.drop_ended()

    def stop(self, timeout: float = 3.0) -> bool:
        """End all jobs and the thread; whether it has ended within `timeout` seconds."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join(timeout)
        return self.thread is None or not self.thread.is_alive()

    def metrics(self) -> str:
        """Counts of jobs and the model's busy seconds, as Prometheus text."""
        with self.changed:
            outcomes = ("done", "failed", "cancelled", "refused")
            rows = [
                ("jobs_waiting", "gauge", len(self.waiting)),
                ("jobs_running", "gauge", len(self.running)),
                *((f"jobs_{name}_total", "counter", self.counts[name]) for name in outcomes),
                ("job_seconds_total", "counter", round(self.busy, 3)),
            ]
        lines = (
            f"# TYPE imagebart_{name} {kind}\nimagebart_{name} {value}\n"
            for name, kind, value in rows
        )
        return "".join(lines)

    # ── the queue; `changed` is held ───────────────────────────────────────────────────────────

    def unfinished(self) -> list[Job]:
        return [*self.waiting, *self.running]

    def reason_to_end(self, job: Job) -> str | None:
        """Why a job should end: a sentence for its visitor, empty if nobody is there to read it."""
        now = time.monotonic()
        if self.stopped:
            return STOPPING
        if now > job.deadline:
            return f"this took longer than {self.seconds:g} s, the limit of this server"
        alone = not any(self.listeners.get(key) for key in job.keys)
        left = alone and (job.heard or now > job.joined + PATIENCE)
        return "" if job.cancelled or left else None

    def drop_ended(self) -> None:
        """Take those out of the queue that nobody waits for."""
        self.end(self.waiting)
        self.changed.notify_all()

    def end(self, jobs: list[Job]) -> None:
        """Finish those of the `jobs` that should end."""
        for job in [*jobs]:
            if (reason := self.reason_to_end(job)) is not None:
                self.finish(jobs, job, "cancelled", CutShort(reason) if reason else None)

    def finish(
        self, jobs: list[Job], job: Job, outcome: str, error: Exception | None = None
    ) -> None:
        """Take a job out of `jobs`, and tell its visitor that it has ended."""
        jobs.remove(job)
        self.counts[outcome] += 1
        with suppress(RuntimeError):  # the event loop has ended
            job.post((JOB_ENDED, error))

    def turn(self, job: Job) -> tuple[int, int, int]:
        return self.served[job.address], self.served[job.session], job.number

    # ── the model's thread ────────────────────────────────────────────────────────────────────

    def work(self) -> None:
        modules = dict.fromkeys(module for model in self.models for module in model.modules())
        hooks = [module.register_forward_pre_hook(self.check) for module in modules]
        while jobs := self.next():
            self.run(jobs)
        for hook in hooks:
            hook.remove()

    def next(self) -> list[Job]:
        """The next job, of the visitor who was served least recently, and those that are run
        together with it; none at the end."""
        with self.changed:
            while not self.stopped:
                self.drop_ended()
                jobs = self.together() if self.waiting else []
                gathering = self.seconds_of_gathering(jobs)
                if jobs and gathering <= 0:
                    self.running = jobs
                    self.waiting = [job for job in self.waiting if job not in self.running]
                    self.note_turn(self.running)
                    return [*self.running]
                self.changed.wait(gathering if jobs else None)
            self.drop_ended()
            return []

    def seconds_of_gathering(self, jobs: list[Job]) -> float:
        """For how long a batch that is smaller than the last one waits for others like it."""
        last, size = self.last, sum(job.work.size for job in jobs)
        alike = last.key is not None and all(job.work.key == last.key for job in jobs)
        return last.until - time.monotonic() if alike and size < last.size else 0.0

    def together(self) -> list[Job]:
        """The job whose turn it is, and as many like it, by their turns, as fit into a batch."""
        first, *others = sorted(self.waiting, key=self.turn)
        jobs, size = [first], first.work.size
        for job in others:
            alike = job.work.key is not None and job.work.key == first.work.key
            if alike and size + job.work.size <= MOST_TOGETHER:
                jobs.append(job)
                size += job.work.size
        return jobs

    def note_turn(self, jobs: list[Job]) -> None:
        self.turns += 1
        here = {one for job in self.waiting for one in (job.address, job.session)}
        now = {one for job in jobs for one in (job.address, job.session)}
        self.served = {one: at for one, at in self.served.items() if one in here}
        self.served |= dict.fromkeys(now & here, self.turns)
        for job in jobs:
            job.deadline = time.monotonic() + self.seconds

    def run(self, jobs: list[Job]) -> None:
        """Run jobs to their end and post what they yield."""
        began, error = time.monotonic(), None
        try:
            with closing(jobs[0].work.run([job.work.request for job in jobs])) as steps:
                for outputs in steps:
                    for job, output in zip(jobs, outputs, strict=True):
                        self.post(job, output)
                    self.check()
        except Ended:
            pass
        except Exception as raised:
            error = raised
        with self.changed:
            ended = time.monotonic()
            self.busy += ended - began
            until = ended + min(GATHERING * (ended - began), MOST_GATHERING)
            size = sum(job.work.size for job in self.running)
            self.last = LastBatch(jobs[0].work.key, size, until)
            for job in [*self.running]:
                self.finish(self.running, job, "failed" if error else "done", error)

    def post(self, job: Job, output: Any) -> None:
        """To the visitor of a running job, who is not to be left far behind."""
        if isinstance(output, Exception):
            with self.changed:
                if job in self.running:
                    self.finish(self.running, job, "failed", output)
        while output is not None and job in self.running:
            if job.room.acquire(timeout=0.1):
                return job.post((output, None))
            self.check()

    def check(self, *_: Any) -> None:
        """End the running jobs that should end, and raise Ended if none is left.

        It is called before every layer in this thread.
        """
        if threading.current_thread() is not self.thread:
            return
        with self.changed:
            self.end(self.running)
        if not self.running:
            raise Ended
