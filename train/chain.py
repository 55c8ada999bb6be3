"""Train all scales, each on its own GPUs: scales never talk to each other.   [section 3.3]

    python train/chain.py --preset scenery --tokens runs/scenery/tokens --out runs/scenery/model

The GPUs of this machine are dealt out to the scales; with fewer GPUs than scales, and on a CPU,
scales wait for their turn. Each is a run of train/scale.py; what it prints goes to
OUT/checkpoints/scale_T/output.txt. A joint preset is one run, on all GPUs. The same command again
resumes all of them. If one fails the others go on, and the exit code says so in the end. SIGTERM
stops all of them; each saves first.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from training import read_options

from imagebart.checkpoint import StopSignal
from imagebart.folders import JOINT
from imagebart.presets import find_preset


@dataclass(frozen=True)
class Config:
    tokens: Path  # what train/encode.py wrote
    out: Path  # the model's folder
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    steps: int | None = None  # instead of the preset's, for every scale
    batch: int | None = None  # instead of the preset's, over all ranks of a scale
    gpus: int | None = None  # how many to deal out; all unless given, 0 for the CPU


def main(config: Config) -> int:
    """Run every scale; the number that failed."""
    preset = find_preset(config.preset)
    waiting = [JOINT] if preset.joint else [str(t) for t in range(2, preset.T + 1)]
    shares = deal(gpus(config.gpus), len(waiting))
    running: dict[str, tuple[subprocess.Popen, list[str]]] = {}
    failed: list[str] = []
    bar = tqdm(total=len(waiting), unit="scale")
    with bar, StopSignal() as stop, stopped_at_last(running, failed):
        while (waiting or running) and not stop.requested:
            while waiting and shares:
                t, share = waiting.pop(0), shares.pop(0)
                running[t] = start_scale(config, t, share), share
            time.sleep(1)
            for t, (process, share) in list(running.items()):
                if process.poll() is not None:
                    del running[t]
                    shares.append(share)
                    failed += [t] if process.returncode else []
                    bar.update()
    for t in failed:
        print(f"scale {t} failed, see {output(config, t)}", file=sys.stderr)
    return len(failed)


@contextmanager
def stopped_at_last(running: dict, failed: list[str]) -> Iterator[None]:
    """Scales that still run at the end of the block are told to stop, and waited for."""
    try:
        yield
    finally:
        for process, _ in running.values():
            process.terminate()  # scale.py saves and leaves
        for t, (process, share) in running.items():
            # One that had not begun to listen dies of the signal, and has nothing to save;
            # torchrun ends with 1 whatever its ranks have saved.
            if process.wait() not in (0, -signal.SIGTERM) and len(share) < 2:
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
        launcher += ["--nproc-per-node", str(len(share))]
    given = {"--preset": config.preset, "--tokens": config.tokens, "--out": config.out}
    given |= {"--t": None if t == JOINT else t, "--steps": config.steps, "--batch": config.batch}
    given |= {"--device": "cuda"} if share else {}  # a GPU that is not there is no CPU instead
    options = [str(x) for name, value in given.items() if value is not None for x in (name, value)]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(share)}
    output(config, t).parent.mkdir(parents=True, exist_ok=True)
    with open(output(config, t), "a", encoding="utf-8") as file:
        command = [*launcher, str(Path(__file__).with_name("scale.py")), *options]
        return subprocess.Popen(command, env=os.environ | visible, stdout=file, stderr=file)


def output(config: Config, t: str) -> Path:
    return config.out / "checkpoints" / f"scale_{t}" / "output.txt"


if __name__ == "__main__":
    config = read_options(Config, __doc__)
    try:
        sys.exit(1 if main(config) else 0)
    except ValueError as error:
        sys.exit(f"error: {error}")
