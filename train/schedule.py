"""Measure a schedule of equal degradation: every step costs the same perceptual distance.   [3.3]

    python train/schedule.py --tokens runs/photos/tokens --T 5

Of held-out pictures of tokens x_1, a share 1 - ᾱ is drawn anew (eq. 6), and both are decoded: their
distance, by features of a network, is a curve over ᾱ. The ᾱ_t lie where it is cut at equal heights.
Printed are the curve, with the error of its mean, and a line for imagebart/presets.py.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from training import errors_said

from imagebart.data.tokens import TokenFile
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import pick_device
from imagebart.folders import load_vqgan
from imagebart.perceptual import PERCEPTUAL

ALPHA_BAR = (*(1.0, 0.98, 0.95), *(k / 10 for k in range(9, -1, -1)))
"""Where the curve is measured: more often where the first wrong tokens hurt most."""


@dataclass(frozen=True)
class Config:
    tokens: Path  # what train/encode.py wrote
    T: int = 5
    n: int = 32  # held-out pictures, or all if there are fewer
    perceptual: Literal["lpips", "imagenet", "random"] = "imagenet"  # by which features
    seed: int = 0
    device: str = "auto"


def main(config: Config) -> None:
    if config.T < 2:
        raise ValueError(f"T must be at least 2, got {config.T}")
    distance = degradation(config)
    mean = distance.mean(1)
    error = distance.std(1, correction=0) / max(1, distance.shape[1] - 1) ** 0.5
    for alpha_bar, height, of_height in zip(ALPHA_BAR, mean, error, strict=True):
        print(f"ᾱ = {alpha_bar:.2f}: {height:.4f} ± {of_height:.4f}")
    print(f"alpha_bar={equal_degradation(mean.tolist(), config.T)}")


@torch.no_grad()
def degradation(config: Config) -> Tensor:
    """ALPHA_BAR × n: how far each picture is from the one of its own tokens."""
    held_out = TokenFile(config.tokens / "validation")
    if config.n < 1:
        raise ValueError(f"n must be at least 1, got {config.n}")
    device = pick_device(config.device)
    vqgan = load_vqgan(config.tokens / "vqgan").to(device).eval()
    features = PERCEPTUAL[config.perceptual]().to(device)
    chains = {a: MultinomialDiffusion([1, a, 0], held_out.K) for a in ALPHA_BAR if 0 < a < 1}
    chains[0.0] = MultinomialDiffusion([1, 0], held_out.K)
    columns = []
    for i in range(min(config.n, len(held_out))):
        x_1 = held_out.batch([i])

        def picture(x: Tensor) -> Tensor:
            grid = x.reshape(1, held_out.height, held_out.width)
            return vqgan.decode(grid.to(device)).clamp(-1, 1)

        clean, column = picture(x_1), [torch.zeros(1)]
        for alpha_bar in ALPHA_BAR[1:]:
            generator = torch.Generator().manual_seed(config.seed + i)
            x_t = chains[alpha_bar].q_sample_marginal(x_1, 2, generator)
            column.append(features(clean, picture(x_t)).cpu())
        columns.append(torch.cat(column))
    return torch.stack(columns, dim=1)


def equal_degradation(distance: list[float], T: int) -> tuple[float, ...]:
    """ᾱ_1 .. ᾱ_T where a curve over ALPHA_BAR has the heights 0, 1/(T-1), …, 1 of its last one.

    ValueError if it does not rise with every value: then no height has one ᾱ.
    """
    if any(b <= a for a, b in pairwise(distance)):
        raise ValueError(f"the distance must rise as ᾱ falls, got {distance}; take a larger --n")
    heights = np.linspace(0, distance[-1], T)
    return tuple(round(float(a), 4) for a in np.interp(heights, distance, ALPHA_BAR))


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    with errors_said():
        main(config)
