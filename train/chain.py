"""Train all scales, each on its own GPUs: scales never talk to each other.   [section 3.3]

    python train/chain.py --preset scenery --tokens runs/scenery/tokens --out runs/scenery/model

The GPUs of this machine are dealt out to the scales; with fewer GPUs than scales, and on a CPU,
scales wait for their turn. Each is a run of train/scale.py; what it prints goes to
OUT/checkpoints/scale_T/output.txt. The same command again resumes all of them. If one fails the
others go on, and the exit code says so in the end.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from imagebart.presets import find_preset


@dataclass(frozen=True)
class Config:
    tokens: Path  # what train/encode.py wrote
    out: Path  # the model's folder
    preset: str = "scenery"  # a row of imagebart/presets.py
    steps: int | None = None  # instead of the preset's, for every scale
    batch: int | None = None  # instead of the preset's, over all ranks of a scale
    gpus: int | None = None  # how many to deal out; all unless given, 0 for the CPU


def main(config: Config) -> int:
    """Run every scale; the number that failed."""
    waiting = list(range(2, find_preset(config.preset).T + 1))
    shares = deal(torch.cuda.device_count() if config.gpus is None else config.gpus, len(waiting))
    running: dict[int, tuple[subprocess.Popen, list[int]]] = {}
    failed, bar = [], tqdm(total=len(waiting), unit="scale")
    try:
        while waiting or running:
            while waiting and shares:
                t, share = waiting.pop(0), shares.pop(0)
                running[t] = start(config, t, share), share
            time.sleep(1)
            for t, (process, share) in list(running.items()):
                if process.poll() is not None:
                    del running[t]
                    shares.append(share)
                    failed += [t] if process.returncode else []
                    bar.update()
    finally:
        bar.close()
        for process, _ in running.values():
            process.terminate()  # scale.py saves and leaves
    for t in failed:
        print(f"scale {t} failed, see {output(config, t)}", file=sys.stderr)
    return len(failed)


def deal(gpus: int, scales: int) -> list[list[int]]:
    """GPUs for as many scales as can run at once: [[0, 1], [2, 3]]; [[]] is the CPU."""
    if gpus < 1:
        return [[]]
    at_once = min(gpus, scales)
    each = gpus // at_once
    return [list(range(i * each, (i + 1) * each)) for i in range(at_once)]


def start(config: Config, t: int, share: list[int]) -> subprocess.Popen:
    """train/scale.py for scale t on its share of the GPUs."""
    launcher = [sys.executable]
    if len(share) > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(len(share))]
    given = {"--preset": config.preset, "--t": t, "--tokens": config.tokens, "--out": config.out}
    given |= {"--steps": config.steps, "--batch": config.batch}
    options = [str(x) for name, value in given.items() if value is not None for x in (name, value)]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, share))}
    output(config, t).parent.mkdir(parents=True, exist_ok=True)
    with open(output(config, t), "a", encoding="utf-8") as file:
        command = [*launcher, str(Path(__file__).with_name("scale.py")), *options]
        return subprocess.Popen(command, env=os.environ | visible, stdout=file, stderr=file)


def output(config: Config, t: int) -> Path:
    return config.out / "checkpoints" / f"scale_{t}" / "output.txt"


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    try:
        sys.exit(1 if main(config) else 0)
    except ValueError as error:
        sys.exit(f"error: {error}")
