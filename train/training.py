"""What the training scripts share: options, the learning rate's schedule, the log, what a run must
keep."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import tyro
from tqdm import tqdm

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


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate: up a line in `warmup_steps`, down a cosine to FLOOR."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def is_reported(step: int, steps: int) -> bool:
    """Whether the log has a line of this step; often at first, where a run shows what it does."""
    return step in (1, 10, 20, steps) or step % 50 == 0


def require_same_run(left_off: dict, run: dict, folder: Path) -> None:
    """ValueError if a checkpoint is of another run: what one is resumed with must stay the same.

    What a checkpoint does not say is not compared; old ones say nothing.
    """
    before = left_off.get("run", {})
    changed = [name for name in before if before[name] != run.get(name, before[name])]
    if changed:
        kept, got = (", ".join(f"{name} {of[name]}" for name in changed) for of in (before, run))
        raise ValueError(f"{folder}: a run that is resumed must keep its {kept}, got {got}")


def say(sentence: str) -> None:
    """Tell whoever watches the run; a progress bar stays whole."""
    tqdm.write(sentence, file=sys.stderr)


@contextmanager
def report(what: str) -> Iterator[None]:
    """A block that only tells about the run: an error in it is said, and the run goes on."""
    try:
        yield
    except Exception as error:  # a full disk, no memory, a picture that cannot be drawn …
        reason = str(error).strip() or type(error).__name__
        say(f"{what} could not be written, the run goes on: {reason.splitlines()[0]}")


class Log:
    """metrics.jsonl: a line of numbers a report. A resumed run drops what lies after its start.

    Strict JSON: a number that is not finite is null.
    """

    def __init__(self, path: Path, start_step: int, active: bool):
        self.path, self.active = Path(path), active
        self.began = time.time()
        if active and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _step(line) <= start_step]
            self.path.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, **values: float) -> None:
        if not self.active:
            return
        line = {"step": step, "seconds": round(time.time() - self.began, 1)}
        for name, value in values.items():
            line[name] = value if isinstance(value, int) else finite(float(value))
        with report(str(self.path)), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def finite(value: float) -> float | None:
    """A number of six decimals; None for NaN and infinities, which JSON does not have."""
    return round(value, 6) if math.isfinite(value) else None


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill
