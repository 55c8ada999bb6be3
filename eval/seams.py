"""Are the window borders of a panorama visible?  [section 4.2, figure 4]

    python eval/seams.py --out seams.json

Panoramas of each seed's class (unconditional, if the model draws none), `fast` and `exact`. `seam`
is the mean |difference| of the two pixel columns at the borders of windows at t = 2, over that at
all other token borders (1 is invisible), with its standard error and 95 % interval over panoramas.
The exact mode has no such borders; the same columns are measured. `rhythm` is the same ratio at
token borders half a window apart, for every offset: windows at equal distances would be visible
there. Also seconds.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from records import Run
from reporting import run
from torch import Tensor
from tqdm import tqdm
from uncertainty import mean_interval

from imagebart import ImageBART
from imagebart.distributed import pick_device
from imagebart.editing.panorama import MODES, WideNoise, origins
from imagebart.folders import SHIPPED
from imagebart.options import PanoramaOptions, as_dataclass, options_given


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(PanoramaOptions, without=("prompts", "classes", "mode", "wrap"))):
    model: str = str(SHIPPED)  # a folder or a Hub id
    width: int = 1536  # pixels
    n: int = 16  # panoramas
    modes: tuple[Literal[MODES], ...] = ("fast",)
    seed: int = 0  # of panorama 0
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    device = pick_device(config.device)
    measured = Run(config, [config.model])
    model, rows = ImageBART.from_pretrained(config.model, device=device), []
    how = options_given(config, PanoramaOptions)
    columns = {"seam": ("f8", 1), "rhythm": ("f8", model.grid[1] // 2), "seconds": ("f8", 1)}
    for mode in config.modes:
        kept = measured.rows(mode, config.n, columns)
        for (i,) in tqdm([*kept.missing()], desc=mode, mininterval=5):
            began = time.perf_counter()
            how |= {"seed": config.seed + i, "mode": mode}
            wide = model.panorama(config.width, output_type="pt", **how)
            seconds = time.perf_counter() - began
            at, wide = borders(model, config.width, config.seed + i), wide.cpu()
            kept.put(
                [i],
                seam=[seam(wide, at, model.vqgan.f)],
                rhythm=[rhythm(wide, model)],
                seconds=[seconds],
            )
        ratios, rhythms = kept["seam"][:, 0], kept["rhythm"]
        row = {
            "mode": mode,
            "width": config.width,
            "seam": float(np.mean(ratios)),
            "seam_error": float(standard_error(ratios)),
            "seam_interval": mean_interval(ratios),
            "rhythm": np.mean(rhythms, axis=0).tolist(),
            "rhythm_error": standard_error(rhythms).tolist(),
            "seconds": float(kept["seconds"].mean()),
        }
        rows.append(row)
        print(
            f"{mode}  seam {row['seam']:.3f} ± {row['seam_error']:.3f}  rhythm "
            f"{min(row['rhythm']):.3f} to {max(row['rhythm']):.3f} ± "
            f"{max(row['rhythm_error']):.3f}  {row['seconds']:.1f} s",
            flush=True,
        )
    seeds = config.seed, config.seed + config.n - 1
    guidance = model.guidance if config.guidance is None else config.guidance
    record = measured.record(device, data=None, n=config.n, seeds=seeds, guidance=guidance)
    return {"rows": rows, **record}


def standard_error(values: list) -> np.ndarray:
    return np.std(values, axis=0, ddof=1) / len(values) ** 0.5


def borders(model: ImageBART, width: int, seed: int) -> list[int]:
    """The first pixel column after every border of windows at t = 2."""
    f, (h, window) = model.vqgan.f, model.grid
    strides = WideNoise(seed, model, (h, width // f)).strides(2, window, "along")
    starts = origins(width // f, window, False, strides)
    return [f * (start + window) for start in starts[:-1]]


def seam(image: Tensor, at: list[int], f: int) -> float:
    """Mean |difference| across the columns `at` over that across all other token borders."""
    step = image.diff(dim=3).abs().mean(dim=(0, 1, 2))  # step[x - 1] leads to column x
    tokens = torch.arange(f, image.shape[3], f)
    here = torch.isin(tokens, torch.tensor(at))
    return (step[tokens[here] - 1].mean() / step[tokens[~here] - 1].mean()).item()


def rhythm(image: Tensor, model: ImageBART) -> list[float]:
    """`seam` at token borders half a window apart, for every offset."""
    f, half = model.vqgan.f, model.grid[1] // 2
    return [
        seam(image, list(range(f * first, image.shape[3], f * half)), f)
        for first in range(1, half + 1)
    ]


if __name__ == "__main__":
    run(main, Config, __doc__)
