"""A run: its steps, from where it left off to the last, and what keeps it safe around each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saving import CHECK_EVERY, MOST_SKIPPED, Saver, Skips, are_finite, checksum, snapshot
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from training import (
    Log,
    Pace,
    is_reported,
    require_same_run,
    say,
    stop_early,
    versions,
    write_run,
)
from watching import Watchdog

from imagebart import distributed
from imagebart.checkpoint import Checkpoints, StopSignal


@dataclass
class TrainingRun:
    """The steps of a run that goes on where it left off; use it as a context.

        with TrainingRun(...) as run:
            for step in run.steps():
                ...
                run.skips.note(finite)

    A run that is told to stop saves first. A state that is no numbers is not saved: the run goes
    back to its last checkpoint, once, and its steps from there come again. `publish` is called in a
    thread, with a copy of the state, before that is a checkpoint: the model's files are never older
    than what the run goes on from.
    """

    config: Any  # save_every, look_every, override, timeout, tensorboard
    recipe: Any  # steps, batch
    ranks: distributed.Ranks
    folder: Path  # of metrics.jsonl
    checkpoints: Checkpoints
    parts: dict[str, Any]  # of a checkpoint; state_dict and its load are called on all ranks
    learned: list[Tensor]  # what must be finite, and the same on all ranks if not in shards
    must_stay: dict[str, Any]  # what the run is resumed with again
    machine: dict[str, Any]  # where it computes
    publish: Callable[[dict[str, Any]], None]  # write the model's files from the state of `parts`
    in_a_row: int = 1  # steps that are reported one after another
    flops: tuple[int, float | None] | None = None  # of `Pace`

    def __enter__(self) -> "TrainingRun":
        self.skips = Skips(self.ranks.device)
        self.pace = Pace(self.recipe.batch, self.ranks.world, self.flops)
        self.went_back_to: int | None = None
        self.in_shards = any(isinstance(x, DTensor) for x in self.learned)
        self.first = self.left_off()
        if self.ranks.is_main:
            write_run(self.folder, self.config, self.recipe, self.must_stay, self.machine)
        shown = dict(total=self.recipe.steps, initial=self.first, unit="step", mininterval=5)
        self.bar = tqdm(**shown, disable=not self.ranks.is_main)
        with ExitStack() as entered:
            self.stop = entered.enter_context(StopSignal())
            self.saver = entered.enter_context(Saver())
            self.watched = entered.enter_context(Watchdog(self.ranks, self.config.timeout))
            self._exit = entered.pop_all().__exit__
        return self

    def __exit__(self, *error) -> None:
        self._exit(*error)

    def steps(self) -> Iterator[int]:
        """How many steps there were before each one that is made now."""
        step = self.first
        while step < self.recipe.steps and not self._is_told_to_stop():
            self.watched.beat(step)
            yield step
            self.bar.update()
            step = self._kept(step + 1)
        self._end(step)

    def is_reported(self, done: int) -> bool:
        """Whether the log has a line of the step that makes them `done`."""
        return any(is_reported(done - i, self.recipe.steps) for i in range(self.in_a_row))

    def is_looked_at(self, done: int) -> bool:
        """Whether what was learned is judged after `done` steps."""
        return done % self.config.look_every == 0 or done == self.recipe.steps

    def report(self, done: int, said: dict[str, str], **numbers: float | Tensor) -> None:
        """A line of the log, and what is `said` beside the bar."""
        numbers |= {"skipped": int(self.skips.all)} if self.skips.all else {}
        self.log.write(done, **numbers)
        self.bar.set_postfix(said | self.pace.at(done), refresh=False)

    def left_off(self) -> int:
        """Load the newest checkpoint; its step, at which the log goes on.

        The main rank reads it, and sends one part after another: each may be large.
        """
        state: dict[str, Any] = {}

        def read() -> int:
            step, newest = self.checkpoints.latest() or (0, {})
            state.update(newest)
            return step

        def rest() -> dict[str, Any]:
            return {name: state[name] for name in state.keys() - self.parts.keys()}

        step = distributed.by_main(read, self.ranks)
        if step:
            made_by = distributed.by_main(rest, self.ranks)
            require_same_run(made_by, self.must_stay, self.folder, self.config.override)
            for name, part in self.parts.items():
                part.load_state_dict(distributed.by_main(partial(state.pop, name), self.ranks))
            self.skips.know(made_by.get("skipped", 0))
        log = self.folder / "metrics.jsonl"
        self.log = Log(log, step, self.ranks.is_main, self.config.tensorboard)
        return step

    def save(self, step: int) -> None:
        """Begin to write the state after `step` steps."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if not self.ranks.is_main:
            return
        state = snapshot(state) | {"skipped": int(self.skips.all)}

        def write() -> None:
            self.publish(state)
            made_by = {"run": self.must_stay, "versions": versions()}
            self.checkpoints.save(step, state | made_by)

        self.saver.start(step, write)

    def _is_told_to_stop(self) -> bool:
        return distributed.on_any_rank(self.stop.requested, self.ranks)

    def _kept(self, step: int) -> int:
        """Save if that is due after `step` steps; the step to go on from, an earlier one if the
        state is no numbers."""
        save_is_due = step % self.config.save_every == 0 or step == self.recipe.steps
        check_is_due = save_is_due or step % CHECK_EVERY == 0
        if self.ranks.world > 1 and check_is_due and not self.in_shards:
            weights = checksum(self.learned)
            distributed.require_same(weights, f"the weights after step {step}", self.ranks)
        if not save_is_due and not self.is_reported(step):
            return step
        broken = bool(self.skips.most >= MOST_SKIPPED)
        broken = broken or (save_is_due and not are_finite(self.learned))
        if distributed.on_any_rank(broken, self.ranks):
            return self._back_from(step)
        if save_is_due:
            self.save(step)
        return step

    def _back_from(self, step: int) -> int:
        """Load the last checkpoint; its step. ValueError if there is none, or none that is newer
        than where the run went back to before."""
        self.saver.wait()
        newest = distributed.by_main(self.checkpoints.newest, self.ranks)
        if newest is None or newest == self.went_back_to:
            raise ValueError(
                f"weights and gradients must be finite, got NaN or infinity before step "
                f"{step}{' again' if newest else ''}; a lower --learning-rate, or "
                "--precision fp32, may help"
            )
        self.bar.n = self.went_back_to = self.left_off()
        self.skips.begin_anew()
        if self.ranks.is_main:
            say(f"NaN or infinity in weights or gradients: back to step {self.went_back_to}")
        return self.went_back_to

    def _end(self, step: int) -> None:
        """After the last step, or where the run was told to stop: then what it has is saved."""
        if step < self.recipe.steps:
            broken = distributed.on_any_rank(not are_finite(self.learned), self.ranks)
            if step % self.config.save_every and not broken:
                self.save(step)
            self.saver.wait()
            stop_early(step, self.stop.requested, self.ranks)
        self.bar.close()
        if self.skips.all and self.ranks.is_main:
            say(f"{int(self.skips.all)} steps were made without gradients, which were not finite")
