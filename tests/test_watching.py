"""A rank that hangs is named, and ranks of a new attempt find each other and none of the dead."""

import threading
import time

import pytest
import torch
import torch.distributed as dist
import watching
from watching import Watchdog

from imagebart.distributed import Ranks, attempt

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"  # by `end`
)


def end(code: int) -> None:
    """What stands for the end of the process: that of a thread."""
    raise SystemExit(code)


def of(rank: int, store) -> Watchdog:
    return Watchdog(Ranks(rank, 3, torch.device("cpu"), store), timeout=0.5)


@pytest.fixture
def store():
    return dist.PrefixStore("watched", dist.HashStore())


def test_a_rank_that_does_not_answer_is_named(store, monkeypatch, capsys):
    """Ranks 0 and 1 wait for rank 2, whose threads stand still as well."""
    monkeypatch.setattr(watching.os, "_exit", end)
    waiting = [of(rank, store).__enter__() for rank in (0, 1)]
    for watchdog in waiting:
        watchdog.beat(7)
        watchdog.thread.join(timeout=30)
        assert not watchdog.thread.is_alive()
    for line, rank in zip(sorted(capsys.readouterr().err.splitlines()), (0, 1), strict=True):
        assert line.startswith(f"error: rank {rank}: rank 2 does not answer, ")
        assert line.endswith(" s without a step")


def test_a_rank_that_is_late_is_named(store, monkeypatch, capsys):
    monkeypatch.setattr(watching.os, "_exit", end)
    watchdogs = [of(rank, store) for rank in range(3)]
    for watchdog, step in zip(watchdogs, (8, 3, 8), strict=True):
        watchdog.__enter__().beat(step)
    for watchdog in watchdogs:
        watchdog.thread.join(timeout=30)
    assert "rank 1 lags behind" in capsys.readouterr().err


def test_ranks_that_go_on_are_left_alone(store, monkeypatch, capsys):
    monkeypatch.setattr(watching.os, "_exit", end)
    with of(0, store) as watchdog:
        for step in range(20):
            watchdog.beat(step)
            time.sleep(0.05)
        assert watchdog.thread.is_alive()
    assert not watchdog.thread.is_alive() and not capsys.readouterr().err
    with Watchdog(Ranks(0, 1, torch.device("cpu")), timeout=0) as alone:
        time.sleep(0.1)
    assert not alone.thread.is_alive()


class Still:
    """The store of a machine that stands still: it takes what is sent, and answers nothing."""

    def clone(self) -> "Still":
        return self

    def set(self, *_) -> None: ...

    def check(self, _) -> bool:
        threading.Event().wait(600)
        return False


def test_a_store_that_stands_still_holds_no_rank(monkeypatch, capsys):
    monkeypatch.setattr(watching.os, "_exit", end)
    monkeypatch.setattr(watching, "STORE_SECONDS", 0.5)
    watchdog = of(0, Still()).__enter__()
    watchdog.thread.join(timeout=30)
    assert not watchdog.thread.is_alive()
    said = capsys.readouterr().err
    assert said.startswith("error: rank 0: the store where ranks met does not answer, ")


def agreed(store, world: int) -> list[str]:
    """The names of an attempt, as its ranks find them; the last rank is late."""
    names: dict[int, str] = {}

    def join(rank: int) -> None:
        time.sleep(0.2 * (rank == world - 1))
        names[rank] = attempt(store, rank, world, timeout=30)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(world))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [names[rank] for rank in range(world)]


def test_every_attempt_has_a_name_of_its_own():
    """Over one store, which holds what the dead wrote, whole or cut short by their death."""
    store = dist.HashStore()
    first, second = agreed(store, 3), agreed(store, 3)
    assert len({*first}) == len({*second}) == 1 and first != second
    store.set("attempt", "cut short")
    third = agreed(store, 3)
    assert len({*third}) == 1 and len({first[0], second[0], third[0], "cut short"}) == 4


def test_ranks_that_do_not_meet_say_so():
    with pytest.raises(ValueError, match="2 ranks must meet in 0 s, got no answer from rank 0"):
        attempt(dist.HashStore(), 1, 2, timeout=0.2)
