"""How much of a bare forward and backward pass's pace train/scale.py reaches, on this machine.

    python train/pace.py --preset scenery --tokens runs/scenery/tokens

The bare loop is the network's loss on one batch and its gradients: no data, no optimiser, no
averaged weights, no log. Both are measured one after another, a few times, and the best of each
counts: what else the machine does takes from both.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from stages import ROOT, rows_of
from training import errors_said, read_options

from imagebart import distributed
from imagebart.arguments import as_int
from imagebart.data.tokens import TokenFile
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.presets import find_preset

FIRST, STEPS = 20, 50
"""Reported steps of train/scale.py between which its pace is taken; the second ends the run."""


@dataclass(frozen=True)
class Config:
    tokens: Path  # what train/encode.py wrote
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    rounds: int = 3
    device: str = "auto"


def main(config: Config) -> None:
    """Print the two paces and their ratio."""
    as_int(config.rounds, "rounds", 1)
    bare = min(bare_seconds(config) for _ in range(config.rounds))
    real = min(real_seconds(config) for _ in range(config.rounds))
    print(f"seconds a step: bare {bare:.3f}, train/scale.py {real:.3f}: {bare / real:.0%} of it")


def bare_seconds(config: Config) -> float:
    """Seconds that the loss of a batch and its gradients take."""
    preset, tokens = find_preset(config.preset), TokenFile(config.tokens / "train")
    device = distributed.pick_device(config.device)
    shape, batch = preset.denoiser(preset.T), preset.scale.batch
    rows = [i % len(tokens) for i in range(batch)]
    diffusion = MultinomialDiffusion(preset.alpha_bar, tokens.K)
    denoiser = Denoiser(shape, diffusion, preset.T).to(device)
    condition = tokens.condition(rows, shape.conditions)
    parts = [tokens.batch(rows)] * 3 + ([] if condition is None else [condition])
    given, steps = [x.to(device) for x in parts], 8
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            began = time.perf_counter()
        denoiser.zero_grad(set_to_none=True)
        with distributed.autocast(device, preset.scale.precision):
            loss = denoiser.at(scale_of(preset, step)).loss(*given).mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def scale_of(preset, step: int) -> int:
    """The scale of a step: in turn if one network serves all."""
    return 2 + step % (preset.T - 1) if preset.joint else preset.T


def real_seconds(config: Config) -> float:
    """Seconds a step of train/scale.py between two of its reports."""
    preset = find_preset(config.preset)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "train" / "scale.py"), "--preset", config.preset]
        command += [] if preset.joint else ["--t", str(preset.T)]
        command += ["--tokens", str(config.tokens), "--out", out, "--steps", str(STEPS)]
        command += ["--device", config.device, "--save-every", "1000", "--look-every", "1000"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise ValueError(
                f"train/scale.py must succeed, it says: {said[-1].removeprefix('error: ')}"
            )
        (log,) = Path(out).rglob("metrics.jsonl")
        seconds = {row["step"]: row["seconds"] for row in rows_of(log) if row.get("loss")}
    first = max(step for step in seconds if step <= FIRST)
    return (seconds[STEPS] - seconds[first]) / (STEPS - first)


if __name__ == "__main__":
    config = read_options(Config, __doc__)
    with errors_said():
        main(config)
