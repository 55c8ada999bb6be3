"""A run's steps, on a toy: where it goes on, when it is saved, when it goes back."""

import math
import os
import signal
from dataclasses import make_dataclass
from functools import partialmethod

import pytest
import torch
from running import TrainingRun
from saving import MOST_SKIPPED, Saver
from torch import nn
from training import must_stay

from imagebart import distributed
from imagebart.checkpoint import Checkpoints
from imagebart.distributed import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def settings(**values):
    """A dataclass of these values, as a script's `Config` and a recipe are."""
    return make_dataclass("Settings", values)(**values)


class Toy:
    """A network whose one weight is the number of its steps, and the run that makes them."""

    def __init__(self, folder, steps: int = 6, ranks: Ranks = ALONE, **options):
        given = dict(preset="toy", seed=0, save_every=2, look_every=4, override=False)
        config = settings(**given, timeout=600, tensorboard=False)
        recipe = settings(steps=steps, batch=1, learning_rate=0.1, precision="fp32")
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.made, self.checkpoints = [], Checkpoints(folder)
        parts, learned = {"network": self.network}, [*self.network.parameters()]
        kept = must_stay(config, recipe)
        saves = self.checkpoints, parts, learned, kept, {}, self.publish
        self.published = []
        self.run = TrainingRun(config, recipe, ranks, folder, *saves, **options)

    def publish(self, state: dict) -> None:
        step = int(state["network"]["weight"])
        self.published.append((step, self.checkpoints.newest()))

    def learn(self, **at) -> None:
        """All steps; `at` says what happens after some, say `step_3=…`."""
        with self.run as run:
            for step in run.steps():
                assert self.network.weight.item() == step or self.is_spoilt()
                with torch.no_grad():
                    self.network.weight += 1
                run.skips.note(torch.tensor(True))
                self.made.append(step + 1)
                if what := at.get(f"step_{step + 1}"):
                    what()

    def spoil(self) -> None:
        """The weight is NaN from here on; not when the step is made again."""
        if self.made.count(self.made[-1]) == 1:
            self.network.weight.data.fill_(math.nan)

    def is_spoilt(self) -> bool:
        return math.isnan(self.network.weight.item())


def test_a_run_goes_on_after_its_checkpoint(tmp_path):
    def die() -> None:
        raise KeyboardInterrupt

    first = Toy(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.learn(step_5=die)
    assert first.made == [1, 2, 3, 4, 5] and first.checkpoints.newest() == 4
    second = Toy(tmp_path)
    second.learn()
    assert second.made == [5, 6]
    third = Toy(tmp_path)
    third.learn()
    assert not third.made and third.checkpoints.newest() == 6
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match="must keep its steps 6, got steps 7"):
        Toy(tmp_path, steps=7).learn()
    assert (tmp_path / "run.json").read_bytes() == before  # it says what the checkpoint was made by


def test_the_models_files_are_never_older_than_the_checkpoint(tmp_path):
    """A run that is killed between the two writes both again."""
    toy = Toy(tmp_path)
    toy.learn()
    assert toy.published == [(2, None), (4, 2), (6, 4)]


def test_a_run_that_is_told_to_stop_saves_first(tmp_path, capsys):
    toy = Toy(tmp_path)
    toy.learn(step_3=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert toy.made == [1, 2, 3] and toy.checkpoints.newest() == 3
    assert "stopped at step 3, the same command goes on" in capsys.readouterr().err


def test_a_state_that_is_no_numbers_is_not_saved(tmp_path, capsys):
    """The run goes back, once; what it never saved it cannot go back to."""
    toy = Toy(tmp_path / "once")
    toy.learn(step_3=toy.spoil)
    assert toy.made == [1, 2, 3, 4, 3, 4, 5, 6]
    assert "NaN or infinity in weights or gradients: back to step 2" in capsys.readouterr().err

    toy = Toy(tmp_path / "twice")
    with pytest.raises(ValueError, match="got NaN or infinity before step 4 again; a lower"):
        toy.learn(step_3=lambda: toy.network.weight.data.fill_(math.nan))
    assert toy.checkpoints.newest() == 2
    toy = Toy(tmp_path / "at once")
    with pytest.raises(ValueError, match="got NaN or infinity before step 2; a lower"):
        toy.learn(step_1=toy.spoil)
    assert toy.checkpoints.newest() is None


def test_no_rank_saves_a_state_that_another_finds_no_numbers(tmp_path, monkeypatch):
    """As a run stops: in shards all ranks gather what is saved, or none does."""
    toy, flags = Toy(tmp_path), []

    def on_any_rank(flag: bool, ranks: Ranks) -> bool:
        """Another rank is told to stop at step 3, where it holds NaN."""
        flags.append(flag)
        return flag or len(toy.made) == 3

    monkeypatch.setattr(distributed, "on_any_rank", on_any_rank)
    toy.learn()
    assert toy.made == [1, 2, 3] and not any(flags)
    assert toy.checkpoints.newest() == 2


def test_steps_without_gradients_lead_back_at_a_report(tmp_path):
    """As many in a row as may be; and the count begins anew."""
    toy = Toy(tmp_path, steps=22)

    with toy.run as run:
        for step in run.steps():
            with torch.no_grad():
                toy.network.weight += 1
            toy.made.append(step + 1)
            again = toy.made.count(step + 1) > 1
            run.skips.note(torch.tensor(again or step < 17 - MOST_SKIPPED))
    assert toy.made == [*range(1, 19), 17, 18, 19, 20, 21, 22]


def test_the_save_has_ended_before_a_run_goes_back(tmp_path, monkeypatch):
    """One that reads sooner would find the checkpoint before."""
    order = []
    toy = Toy(tmp_path)
    toy.run.publish = lambda _: None  # the toy's own reads too
    wait, newest = Saver.wait, Checkpoints.newest
    monkeypatch.setattr(Saver, "wait", lambda self: order.append("saved") or wait(self))
    monkeypatch.setattr(Checkpoints, "newest", lambda self: order.append("read") or newest(self))
    toy.learn(step_4=toy.spoil)
    at = order.index("read")
    assert order[at - 1 : at + 1] == ["saved", "read"]


def test_the_main_rank_alone_reads_checkpoints(tmp_path, monkeypatch):
    """Others have what it has read, when the run begins and when it goes back."""
    inside, read = [], []

    def by_main(function, ranks):
        inside.append(True)
        try:
            return function()
        finally:
            inside.pop()

    def reading(self, method) -> object:
        read.append(bool(inside))
        return method(self)

    toy = Toy(tmp_path)
    toy.run.publish = lambda _: None  # the toy's own reads too
    monkeypatch.setattr(distributed, "by_main", by_main)
    for name in ("latest", "newest"):
        method = getattr(Checkpoints, name)
        monkeypatch.setattr(Checkpoints, name, partialmethod(reading, method))
    toy.learn(step_3=toy.spoil)
    assert read == [True, True, True]


def test_skipped_steps_are_counted_over_all_processes_of_a_run(tmp_path):
    """Steps that come again are counted again: each of them was skipped."""

    def skip() -> None:
        toy.run.skips.note(torch.tensor(False))

    toy = Toy(tmp_path, steps=10)
    toy.learn(step_1=skip, step_3=toy.spoil, step_6=lambda: os.kill(os.getpid(), signal.SIGTERM))
    toy = Toy(tmp_path, steps=10)
    toy.learn(step_7=skip)
    assert toy.run.skips.all == 2
    assert toy.checkpoints.latest()[1]["skipped"] == 2


def test_a_report_is_a_line_a_scale(tmp_path):
    toy = Toy(tmp_path, steps=60, in_a_row=3)
    assert [done for done in range(1, 61) if toy.run.is_reported(done)] == [
        *(1, 2, 3, 10, 11, 12, 20, 21, 22, 50, 51, 52, 60)
    ]
    assert [done for done in range(1, 61) if toy.run.is_looked_at(done)] == [*range(4, 61, 4)]
