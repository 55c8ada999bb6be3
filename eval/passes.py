"""How much autoregression does a scale need? Passes of exact parallel decoding.  [after eq. 9]

    python eval/passes.py --out eval/results/passes.json --picture docs/passes.png
    python eval/passes.py --model imagebart/pretrained/scenery runs/scenery-2/model ...

A scale without autoregression would take one pass per window; a fully autoregressive one, one pass
per token. For every model, scale and window: the mean number of passes for the tokens of one
unconditional image over `n` seeds, β_t (the probability that the step resamples a token), and the
mean seconds per image without the VQGAN.

`--guess draft x_t` compares two first guesses: a draft from the coarser scales' prediction of x_1,
and x_t itself.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from records import Run, recorded
from reporting import run
from timing import open_unconditional
from tqdm import tqdm
from uncertainty import mean_interval

from imagebart import ImageBART, show
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.sampling import Draft, decode_parallel


@dataclass(frozen=True)
class Config:
    model: tuple[str, ...] = (str(SHIPPED),)  # folders or Hub ids, side by side
    windows: tuple[int, ...] = (8, 16, 32, 64)  # positions a pass reads
    guess: tuple[Literal["draft", "x_t"], ...] = ("draft",)  # what decoding starts from
    n: int = 16  # images, one at a time
    seed: int = 0  # of image 0
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where the plot goes, a PNG
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 1 or min(config.windows) < 1:
        raise ValueError(f"n and windows must be at least 1, got {config.n}, {config.windows}")
    device = pick_device(config.device)
    measured, rows = Run(config, config.model), []
    for source in config.model:
        model = open_unconditional(source, device)
        for guess, width in product(config.guess, config.windows):
            rows += count_passes(model, source, width, guess, config, measured)
            for row in rows[1 - model.T :]:
                print(summary_line(row), flush=True)
    if config.picture:
        plot_passes(rows, config.windows).save(config.picture)
    seeds = config.seed, config.seed + config.n - 1
    return {"rows": rows, **measured.record(device, data=None, n=config.n, seeds=seeds)}


def from_x_t(*args, draft: Draft, **options) -> torch.Tensor:
    """`decode_parallel` from the guess x_t instead of the draft."""
    return decode_parallel(*args, **options)


GUESSES = {"draft": decode_parallel, "x_t": from_x_t}


def count_passes(
    model: ImageBART, source: str, width: int, guess: str, config: Config, measured: Run
) -> list[dict]:
    """A row for each scale, t = T first."""
    columns = dict.fromkeys(("passes", "seconds"), ("f8", model.T + 1))
    kept = measured.rows(f"{source} {guess} {width}", config.n, columns)
    for (i,) in tqdm([*kept.missing()], desc=f"window {width}", mininterval=5, leave=False):
        passes, seconds = np.zeros((2, model.T + 1))
        noted = show.Passes()
        decode = partial(GUESSES[guess], window=width, on_pass=noted)
        steps = model.sample_steps(1, seed=config.seed + i, method=decode)
        next(steps)
        for t in range(model.T, 1, -1):
            before, began = len(noted), time.perf_counter()
            next(steps)
            passes[t], seconds[t] = len(noted) - before, time.perf_counter() - began
        kept.put([i], passes=[passes], seconds=[seconds])
    passes, seconds = kept["passes"], kept["seconds"]
    return [
        {
            "model": recorded(source),
            "T": model.T,
            "t": t,
            "beta": float(model.diffusion.beta[t]),
            "guess": guess,
            "window": width,
            "tokens": model.denoisers[t].n,
            "passes": passes[:, t].mean(),
            "passes_std": passes[:, t].std(),
            "passes_interval": mean_interval(passes[:, t]),
            "seconds": seconds[:, t].mean(),
        }
        for t in range(model.T, 1, -1)
    ]


@matplotlib.rc_context(show.STYLE)
def plot_passes(rows: list[dict], windows: tuple[int, ...]) -> show.Picture:
    """Passes against the window: one colour per scale and model, dashed from x_t."""
    lines: dict[tuple, list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "T", "t", "beta", "guess"))
        lines.setdefault(key, []).append(row["passes"])
    scales = list(dict.fromkeys(key[:4] for key in lines))
    twice = len(lines) > len(scales)
    figure = Figure(figsize=(7.5, 2.8), dpi=100)
    ax = figure.subplots()
    for (*scale, guess), passes in lines.items():
        colour = show.COLOUR_CYCLE[scales.index(tuple(scale)) % len(show.COLOUR_CYCLE)]
        dashed = guess == "x_t"
        name = "_" if dashed and twice else called(*scale, alone=len({s[0] for s in scales}) == 1)
        ax.plot(windows, passes, "o--" if dashed else "o-", color=colour, label=name)
    if any(key[-1] == "x_t" for key in lines):
        ax.plot([], [], "--", color=show.INK, label="from x_t alone")
    ax.set(xticks=windows, xlabel="positions a pass looks at")
    ax.set_ylabel(f"passes for {rows[0]['tokens']} tokens")
    figure.legend(loc="outside right center")
    return show.drawn(figure)


def called(model: str, T: int, t: int, beta: float, alone: bool) -> str:
    """The label of a scale, with its model's name if there are several."""
    folder = Path(model.removesuffix("/model")).name  # as the recipes of presets.py name them
    return f"{'' if alone else f'{folder}, T = {T}: '}t = {t}, β = {beta:.2f}"


def summary_line(row: dict) -> str:
    return (
        f"{row['model']}  T = {row['T']}  t = {row['t']}  β = {row['beta']:.2f}  window "
        f"{row['window']:2} from {row['guess']}  {row['passes']:.1f} ± {row['passes_std']:.1f} "
        f"passes for {row['tokens']} tokens  {row['seconds']:.3f} s"
    )


if __name__ == "__main__":
    run(main, Config, __doc__)
