"""Train all scales, each on its own GPUs: scales never talk to each other.   [section 3.3]

    python train/chain.py --preset scenery --tokens runs/scenery/tokens --out runs/scenery/model

The GPUs of this machine are dealt out to the scales; with fewer GPUs than scales, and on a CPU,
scales wait for their turn. Each is a run of train/scale.py; what it prints goes to
OUT/checkpoints/scale_T/output.txt, how far it is to a live table. A joint preset is one run, on all
GPUs. The same command again resumes all of them. A scale that fails after it has made steps is
started again, alone, a few times; the others go on, and the exit code says in the end if one
failed. SIGTERM stops all of them, and so does the end of this process, however it ends; each saves
first.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from progress import CHAIN_COLUMNS, Progress, duration
from stages import TORCHRUN, rows_of, stop_with_the_parent
from training import errors_said, read_options

from imagebart.checkpoint import StopSignal, read_json
from imagebart.folders import JOINT
from imagebart.presets import find_preset

RESTARTS = 3
"""Times that a scale is started again."""
LEAST_SECONDS = 1.0
"""Between two reports that say how fast it is: a joint network reports several in a row."""


@dataclass(frozen=True)
class Config:
    tokens: Path  # what train/encode.py wrote
    out: Path  # the model's folder
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    steps: int | None = None  # instead of the preset's, for every scale
    batch: int | None = None  # instead of the preset's, over all ranks of a scale
    learning_rate: float | None = None  # as of train/scale.py
    precision: str | None = None  # instead of the preset's: "fp32" or "bf16"
    seed: int = 0
    gpus: int | None = None  # how many to deal out; all unless given, 0 for the CPU
    at_once: int | None = None  # as of train/scale.py, as the following
    compile: bool = False
    recompute: bool = False
    shard: bool = False
    override: bool = False


@dataclass
class Scale:
    """One run of train/scale.py."""

    t: str
    share: list[str]  # its GPUs
    process: subprocess.Popen
    rows_before: list[dict]  # of its log, when it was started
    restarts: int = 0
    began: float = field(default_factory=time.monotonic)


def main(config: Config) -> int:
    """Run every scale; the number that failed."""
    preset = find_preset(config.preset)
    waiting = [JOINT] if preset.joint else [str(t) for t in range(2, preset.T + 1)]
    shares = deal(gpus(config.gpus), len(waiting))
    steps, batch = config.steps or preset.scale.steps, config.batch or preset.scale.batch
    running: dict[str, Scale] = {}
    failed: list[str] = []
    with Progress(CHAIN_COLUMNS) as table, StopSignal() as stop, stopped_at_last(running, failed):
        while (waiting or running) and not stop.requested:
            while waiting and shares:
                t, share = waiting.pop(0), shares.pop(0)
                running[t] = started_scale(config, t, share)
            time.sleep(1)
            for t, scale in list(running.items()):
                ended = scale.process.poll() is not None
                table.put(f"scale {t}", row_of_scale(config, scale, steps, batch), ended)
                if not ended:
                    continue
                if scale.process.returncode and may_go_on(config, scale):
                    table.say(f"scale {t} failed, see {output(config, t)}: it is started again")
                    running[t] = started_scale(config, t, scale.share, scale.restarts + 1)
                    continue
                del running[t]
                shares.append(scale.share)
                failed += [t] if scale.process.returncode else []
    for t in failed:
        print(f"scale {t} failed, see {output(config, t)}", file=sys.stderr)
    return len(failed)


def started_scale(config: Config, t: str, share: list[str], restarts: int = 0) -> Scale:
    """A scale that runs."""
    before = reports(config, t)
    return Scale(t, share, start_scale(config, t, share), before, restarts)


def may_go_on(config: Config, scale: Scale) -> bool:
    """Whether another start may help: it was killed, or it has made steps since its start.

    What is wrong with its options or its data ends it before its first step. A run that resumes
    drops what its log has after the checkpoint, so steps that it makes may be fewer than before.
    """
    killed = scale.process.returncode < 0
    rows = reports(config, scale.t)
    learned = rows != scale.rows_before[: len(rows)]
    return (killed or learned) and scale.restarts < RESTARTS


def reports(config: Config, t: str) -> list[dict]:
    """The lines of a scale's metrics.jsonl."""
    path = output(config, t).with_name("metrics.jsonl")
    return rows_of(path) if path.exists() else []


def since_the_start(rows: list[dict]) -> int:
    """The first row of the process that wrote last: each counts its own seconds."""
    seconds = [row["seconds"] for row in rows]
    return max((i for i in range(1, len(rows)) if seconds[i] < seconds[i - 1]), default=0)


def steps_of(rows: list[dict]) -> int:
    return rows[-1]["step"] if rows else 0


def row_of_scale(config: Config, scale: Scale, steps: int, batch: int) -> tuple[str, ...]:
    """A scale's row of the table: steps, nats, held out, images/s, MFU, left, restarts."""
    rows = reports(config, scale.t)
    losses = [row for row in rows if row.get("loss") is not None]
    held_out = [row["held_out"] for row in rows if row.get("held_out") is not None]
    rate = 0.0  # steps a second, since the newest report of the same process that is older
    of_process = losses[since_the_start(losses) :]
    older = [row for row in of_process if row["seconds"] + LEAST_SECONDS <= losses[-1]["seconds"]]
    if older and (steps_since := losses[-1]["step"] - older[-1]["step"]) > 0:
        rate = steps_since / (losses[-1]["seconds"] - older[-1]["seconds"])
    done = steps_of(rows)
    return (
        f"{done:,} / {steps:,}",
        f"{losses[-1]['loss']:.3f}" if losses else "",
        f"{held_out[-1]:.3f}" if held_out else "",
        f"{rate * batch:,.1f}" if rate else "",
        utilisation(config, scale.t, rate * batch),
        duration((steps - done) / rate) if rate else "…",
        str(scale.restarts or ""),
    )


def utilisation(config: Config, t: str, images_a_second: float) -> str:
    """MFU, where run.json has the operations an image and those of the GPU."""
    path = output(config, t).with_name("run.json")
    machine = read_json(path)["machine"] if path.exists() else {}
    if not images_a_second or not machine.get("peak_flops"):
        return ""
    flops = images_a_second * machine["image_flops"]
    return f"{flops / machine['peak_flops'] / machine['ranks']:.0%}"


@contextmanager
def stopped_at_last(running: dict[str, Scale], failed: list[str]) -> Iterator[None]:
    """Scales that still run at the end of the block are told to stop, and waited for."""
    try:
        yield
    finally:
        for scale in running.values():
            scale.process.terminate()  # scale.py saves and leaves
        for t, scale in running.items():
            # One that had not begun to listen dies of the signal, and has nothing to save;
            # torchrun ends with 1 whatever its ranks have saved.
            if scale.process.wait() not in (0, -signal.SIGTERM) and len(scale.share) < 2:
                failed.append(t)


def gpus(count: int | None) -> list[str]:
    """The first `count` GPUs that this process may use (None: all), as the driver calls them."""
    here = torch.cuda.device_count()
    if count is not None and not 0 <= count <= here:
        raise ValueError(f"gpus must lie in [0, {here}], as many as this machine has, got {count}")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(here)) if given is None else given.split(",")
    return list(names)[: here if count is None else count]


def deal(gpus: list[str], scales: int) -> list[list[str]]:
    """GPUs for as many scales as can run at once: [["0", "1"], ["2", "3"]]; [[]] is the CPU."""
    if not gpus:
        return [[]]
    at_once = min(len(gpus), scales)
    each = len(gpus) // at_once
    return [gpus[i * each : (i + 1) * each] for i in range(at_once)]


def start_scale(config: Config, t: str, share: list[str]) -> subprocess.Popen:
    """train/scale.py for scale t, or JOINT, on its share of the GPUs."""
    launcher = [sys.executable]
    if len(share) > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(len(share)), "--max-restarts", str(RESTARTS)]
    given: dict[str, object] = {"t": None if t == JOINT else t}
    names = ("preset", "tokens", "out", "steps", "batch", "learning_rate", "precision", "seed")
    given |= {name: getattr(config, name) for name in (*names, "at_once")}
    given |= {"device": "cuda"} if share else {}  # a GPU that is not there is no CPU instead
    options = [
        str(x)
        for name, value in given.items()
        if value is not None
        for x in (f"--{name.replace('_', '-')}", value)
    ]
    flags = ("compile", "recompute", "shard", "override")
    options += [f"--{name}" for name in flags if getattr(config, name)]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(share)}
    output(config, t).parent.mkdir(parents=True, exist_ok=True)
    with open(output(config, t), "a", encoding="utf-8") as file:
        command = [*launcher, str(Path(__file__).with_name("scale.py")), *options]
        return subprocess.Popen(
            command,
            env=TORCHRUN | os.environ | visible,
            stdout=file,
            stderr=file,
            preexec_fn=stop_with_the_parent,
        )


def output(config: Config, t: str) -> Path:
    return config.out / "checkpoints" / f"scale_{t}" / "output.txt"


if __name__ == "__main__":
    config = read_options(Config, __doc__)
    with errors_said():
        sys.exit(1 if main(config) else 0)
