"""What the training scripts share: options, the learning rate's schedule, the log, what a run must
keep."""

import errno
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from tqdm import tqdm

from imagebart import distributed
from imagebart.checkpoint import atomic_write, run_lock, write_json
from imagebart.data.remote import is_remote
from imagebart.presets import table

Config = TypeVar("Config")

FLOOR = 0.01
"""What is left of the learning rate at the end."""


def read_options(config: type[Config], description: str) -> Config:
    """The command line's options; `--preset list` prints the presets and ends the process."""
    words = sys.argv[1:]
    if ("--preset", "list") in pairwise(words) or "--preset=list" in words:
        print(table())
        sys.exit()
    return tyro.cli(config, description=description)


@contextmanager
def errors_said() -> Iterator[None]:
    """A ValueError in the block ends the process with its message."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"error: {error}")


def run_alone(main: Callable[[Any], None], config: Any) -> None:
    """`main(config)`, the only run in the folder `config.out`; a ValueError ends the process with
    its message."""
    with errors_said(), run_lock(config.out):
        main(config)


def located(data: str) -> str:
    """The name of a data set as every working folder finds it."""
    return data if data == "scenery" or is_remote(data) else str(Path(data).resolve())


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate: up a line in `warmup_steps`, down a cosine to FLOOR."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def is_reported(step: int, steps: int) -> bool:
    """Whether the log has a line of this step; often at first, where a run shows what it does."""
    return step in (1, 10, 20, steps) or step % 50 == 0


# ── the record of a run ───────────────────────────────────────────────────────────────────────


def versions() -> dict[str, str]:
    """What computes: a resumed run may have others, and says so."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def must_stay(config: Any, recipe: Any, **more: Any) -> dict[str, Any]:
    """What a run is resumed with again: of its options and its recipe, and `more`."""
    given = {"preset": config.preset, "batch": recipe.batch, "seed": config.seed}
    names = ("steps", "learning_rate", "precision")
    return given | more | {name: getattr(recipe, name) for name in names}


def require_same_run(left_off: dict, run: dict, folder: Path, override: bool = False) -> None:
    """ValueError if a checkpoint is of another run: what one is resumed with must stay the same,
    or is said if `override`.

    What a checkpoint does not say is not compared; that is said once, as the next one says it.
    """
    before = left_off.get("run", {})
    changed = [name for name in run if before.get(name, run[name]) != run[name]]
    if changed:
        kept, got = (", ".join(f"{name} {of[name]}" for name in changed) for of in (before, run))
        if not override:
            raise ValueError(
                f"{folder}: a run that is resumed must keep its {kept}, got {got}; "
                "--override goes on with the change"
            )
        say(f"{folder}: resumed with {got}, until now {kept}")
    unknown = [name for name in run if name not in before]
    if unknown:
        say(f"{folder}: its checkpoint does not say {', '.join(unknown)}; taken to be the same")
    if left_off.get("versions", versions()) != versions():
        say(f"{folder}: resumed by {versions()}, until now {left_off['versions']}")


def machine_of(ranks: distributed.Ranks, precision: str, at_once: int) -> dict[str, Any]:
    """Where a run computes, and in what; the latter is said if it is not as asked."""
    used = distributed.precision_on(ranks.device, precision)
    if used != precision and ranks.is_main:
        say(f"{ranks.device}: has no products in bfloat16, so everything is computed in float32")
    machine = {"ranks": ranks.world, "device": str(ranks.device)}
    return machine | {"images_at_once": at_once, "precision": used}


def write_run(folder: Path, config: Any, recipe: Any, run: dict, machine: dict) -> None:
    """run.json: the options that were given, the recipe that came of them, what must stay, and
    where it runs."""
    record = {"run": run, "options": asdict(config), "recipe": asdict(recipe), "machine": machine}
    with report(str(folder / "run.json")):
        write_json(as_json(record | {"versions": versions()}), folder / "run.json")


def as_json(value: Any) -> Any:
    """A value as strict JSON has it: absolute paths, and text for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# ── what a run tells ──────────────────────────────────────────────────────────────────────────


def say(sentence: str) -> None:
    """Tell whoever watches the run; a progress bar stays whole."""
    tqdm.write(sentence, file=sys.stderr)


def stop_early(step: int, told_to_stop: bool, ranks: distributed.Ranks) -> None:
    """Say that a run, whose state is saved, stops before its last step; ValueError on every rank if
    several launchers started it (`distributed.require_one_launcher`)."""
    if ranks.is_main:
        say(f"stopped at step {step}, the same command goes on")
    distributed.require_one_launcher(told_to_stop, ranks)


@contextmanager
def report(what: str) -> Iterator[None]:
    """A block that only tells about the run: an error in it is said, and the run goes on."""
    try:
        yield
    except Exception as error:  # a full disk, no memory, a picture that cannot be drawn …
        reason = str(error).strip() or type(error).__name__
        say(f"{what} could not be written, the run goes on: {reason.splitlines()[0]}")


class Pace:
    """How fast a run is since its last report: images a second, and MFU where it is known.

    MFU, the model's FLOPs utilisation: operations of the forward and the backward pass, as a share
    of what the GPUs could do. `flops` are the operations an image and those a second of a GPU.
    """

    def __init__(self, batch: int, ranks: int, flops: tuple[int, float | None] | None):
        self.batch, self.ranks, self.flops = batch, ranks, flops
        self.before: tuple[int, float] | None = None

    def at(self, step: int) -> dict[str, str]:
        """The pace up to this step, in words; nothing at the first report."""
        now, before = (step, time.monotonic()), self.before
        self.before = now
        if before is None:
            return {}
        rate = (now[0] - before[0]) * self.batch / max(now[1] - before[1], 1e-9)
        said = {"images/s": f"{rate:.1f}"}
        if self.flops and self.flops[1]:
            said["MFU"] = f"{rate * self.flops[0] / self.flops[1] / self.ranks:.0%}"
        return said


class Log:
    """metrics.jsonl: a line of numbers a report. A resumed run drops what lies after its start.

    Strict JSON: a number that is not finite is null. With `tensorboard`, event files beside it too.
    """

    def __init__(self, path: Path, start_step: int, active: bool, tensorboard: bool = False):
        self.path, self.active = Path(path), active
        self.writer = event_writer(self.path.parent, start_step) if active and tensorboard else None
        self.began = time.time()
        if active and self.path.exists():
            with report(str(self.path)):
                self._drop_after(start_step)

    def _drop_after(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _step(line) <= step]
        if kept != lines:
            with atomic_write(self.path) as draft:  # a kill leaves the old log, or the new one
                draft.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, **values: float) -> None:
        if not self.active:
            return
        line = {"step": step, "seconds": round(time.time() - self.began, 1)}
        for name, value in values.items():
            line[name] = value if isinstance(value, int) else finite(float(value))
        with report(str(self.path)):
            self._append((json.dumps(line, allow_nan=False) + "\n").encode())
        if self.writer is not None:
            which = f" t = {line['t']}" if "t" in line else ""
            for name in values.keys() - {"t"}:
                if line[name] is not None:
                    self.writer.add_scalar(name + which, line[name], step)

    def _append(self, line: bytes) -> None:
        """Write a line whole or, on a full disk, nothing of it."""
        with open(self.path, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def event_writer(folder: Path, start_step: int) -> Any:
    """TensorBoard's writer into a folder; ValueError if the package is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs `pip install tensorboard`, got none") from None
    return SummaryWriter(str(folder), purge_step=start_step + 1)


def finite(value: float) -> float | None:
    """A number of six decimals; None for NaN and infinities, which JSON does not have."""
    return round(value, 6) if math.isfinite(value) else None


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill
