"""One stage of train/everything.py: a script as a process of its own, watched until it ends."""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from progress import Progress

from imagebart.checkpoint import StopSignal

ROOT = Path(__file__).parents[1]
SAVE_SECONDS = 10
"""Seconds between two records of how long a stage has taken."""
TORCHRUN = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"}
"""Environment of torchrun: seconds in which ranks may save once told to stop; without it, 30."""
LOSSES = ("rec", "loss")
"""What the scripts call that which they make small, in metrics.jsonl."""


@dataclass(frozen=True)
class Stage:
    """A script of this repository and its options, all of which it can resume."""

    name: str
    script: tuple[str, ...]  # a file of this repository, or -m, a module and its command
    options: dict[str, object]
    metrics: str = ""  # pattern of its metrics.jsonl, below OUT
    steps: int = 0  # in all its runs; 0: it does not count any
    batch: int = 0  # images a step
    gpus: int = 0  # processes that torchrun starts, if more than one

    def command(self) -> list[str]:
        launcher = [sys.executable]
        if self.gpus > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc-per-node", str(self.gpus)]
        script = [str(ROOT / x) if x.endswith(".py") else x for x in self.script]
        given = ((name,) if x is True else (name, x) for name, x in self.options.items())
        options = [str(x) for words in given for x in words]
        return [*launcher, *script, *options]


class Metrics:
    """The metrics.jsonl of a stage's runs, as they stand; the one changed last is the last."""

    def __init__(self, out: Path, pattern: str):
        paths = Path(out).glob(pattern) if pattern else []
        paths = sorted(paths, key=lambda path: path.stat().st_mtime)
        self.runs = [[row for row in rows_of(path) if "step" in row] for path in paths]

    def steps(self) -> int:
        """Steps that were reported, of all runs."""
        return sum(rows[-1]["step"] for rows in self.runs if rows)

    def loss(self) -> float | None:
        """The last reported loss, of the run that wrote last."""
        rows = [row for rows in self.runs for row in rows]
        losses = [row[name] for row in rows for name in LOSSES if row.get(name) is not None]
        return losses[-1] if losses else None

    def steps_a_second(self) -> float:
        """From the first report to the last, so without start-up: the mean of all runs."""
        rates = []
        for rows in self.runs:
            first, last = rows[0], [row for row in rows if any(name in row for name in LOSSES)][-1]
            seconds = max(last["seconds"] - first["seconds"], 0.05)
            rates.append((last["step"] - first["step"]) / seconds)
        return sum(rates) / len(rates)


def rows_of(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, but for those that a kill or a full disk has cut."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def run_stage(
    stage: Stage,
    out: Path,
    done: dict[str, dict],
    save: Callable[[], None],
    progress: Progress,
    stop: StopSignal,
) -> None:
    """Run a stage to its end unless `done` says that it has ended; count its seconds there.

    Raises ValueError if the script fails, SystemExit if this process is told to stop: the script
    is then told as well, and waited for.
    """
    entry = done.setdefault(stage.name, {"seconds": 0.0, "done": False})
    if entry["done"]:
        return
    out.mkdir(parents=True, exist_ok=True)
    output, before = out / f"{stage.name}.txt", entry["seconds"]
    at_first, began = Metrics(out, stage.metrics).steps(), time.monotonic()
    process, ended = started(stage, output), False
    while not ended:
        if stop.requested:
            process.terminate()
        time.sleep(0.2)
        ended = process.poll() is not None
        seconds = time.monotonic() - began
        metrics = Metrics(out, stage.metrics)
        steps = metrics.steps()
        if ended or seconds + before - entry["seconds"] > SAVE_SECONDS:
            entry["seconds"] = round(before + seconds, 1)
            entry["done"] = process.returncode == 0 and steps >= stage.steps
            save()
        learned = steps - at_first, seconds
        progress.show(stage.name, (steps, stage.steps), metrics.loss(), stage.batch, learned, ended)
    if stop.requested:
        sys.exit(128 + signal.SIGTERM)
    if process.returncode:
        lines = output.read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
        raise ValueError(f"{stage.name} must succeed, see {output}, which ends: {lines[-1]}")
    if not entry["done"]:
        raise ValueError(f"{stage.name} must make {stage.steps} steps, got {steps}: it was stopped")


def begin_anew(out: Path) -> None:
    """Remove what a run that was stopped has left in `out`, once its last process has ended."""
    for path in out.glob("*.lock"):
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
    shutil.rmtree(out, ignore_errors=True)


def started(stage: Stage, output: Path) -> subprocess.Popen:
    """The stage's process. It ends when this process ends, however that ends, and waits for one
    that an earlier process has left behind: the lock is held by whoever has the file open."""
    with (
        open(output, "a", encoding="utf-8") as file,
        open(output.with_suffix(".lock"), "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.Popen(
            stage.command(),
            env=TORCHRUN | os.environ,
            stdout=file,
            stderr=file,
            pass_fds=[lock.fileno()],
            preexec_fn=stop_with_the_parent,
        )


def stop_with_the_parent() -> None:
    """Ask Linux to send SIGTERM when the process that started this one has ended."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
