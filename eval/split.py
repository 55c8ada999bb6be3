"""Decoding speed against the split of layers between encoder and decoder.   [figure 8 left]

    python eval/split.py --out eval/results/split.json --picture docs/split.png
    python eval/split.py --width 752 --dtype bf16 --out split_752.json          # the released width

The encoder runs once per image, the decoder once per token: of two denoisers with equal parameters
the one with the shallower decoder is faster. The paper varies the split at fixed parameters and
finds the best compromise of quality and speed at 4 to 6 decoder layers. For each decoder depth, the
encoder depth closest to the preset's number of parameters is used, and one image's tokens at t = 2
are timed, sequentially and in parallel with the passes of a trained chain (eval/replay.py). Weights
are random: what each split learns is measured in small (eval/ablation.py --of layers).
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from records import Run
from replay import BETWEEN, decode_replayed, pass_starts, profile
from reporting import run
from timing import DTYPES, open_unconditional, timed, with_passes
from tqdm import tqdm

from imagebart import show
from imagebart.choice import Filter
from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.presets import find_preset
from imagebart.sampling import METHODS, decode_sequential, default_window, gumbel, uniform_tokens


@dataclass(frozen=True)
class Config:
    shape: str = "ffhq-4"  # the preset whose denoiser of t < T is split
    width: int = 256  # in place of the preset's, heads in proportion
    decoder_depths: tuple[int, ...] = tuple(range(1, 13))
    passes_of: Path = SHIPPED  # the trained chain whose passes are taken in parallel
    passes_n: int = 16  # images over which those are measured
    dtype: Literal[tuple(DTYPES)] = "fp32"
    repeats: int = 3
    seed: int = 0
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where the plot goes, a PNG
    device: str = "auto"


def main(config: Config) -> dict:
    device, preset = pick_device(config.device), find_preset(config.shape)
    measured = Run(config, [config.passes_of])
    diffusion = MultinomialDiffusion(preset.alpha_bar, preset.K)
    trained = open_unconditional(config.passes_of, device)
    tenths = profile(trained, config.passes_n, config.seed)
    if BETWEEN not in tenths:
        raise ValueError(f"passes_of must have scales t < T, got a chain of T = {trained.T}")
    shape = narrowed(preset.between, config.width)
    shapes = [refilled(shape, depth, diffusion) for depth in config.decoder_depths]
    rows = [
        measure_split(one, diffusion, tenths[BETWEEN], device, config)
        for one in tqdm(shapes, desc="splits", mininterval=5)
    ]
    report = {
        "rows": rows,
        "tokens": shape.n,
        "parameters_of_preset": parameters(shape, diffusion),
        "made": "random weights; parallel passes are computed in full, as many and where the "
        "trained chain's scales t < T take them on average",
        **measured.record(device, data=None, n=1, seeds=(config.seed, config.seed)),
    }
    if config.picture:
        plot_split(report).save(config.picture)
    return report


# ── shapes ────────────────────────────────────────────────────────────────────────────────────


def narrowed(shape: DenoiserConfig, width: int) -> DenoiserConfig:
    """The same depths at another width; heads in proportion, one at least."""
    heads = max(1, round(shape.heads * width / shape.width))
    return replace(shape, width=width, heads=heads)


def refilled(shape: DenoiserConfig, decoder_depth: int, diffusion) -> DenoiserConfig:
    """That decoder depth, and the encoder depth closest to the number of parameters of `shape`.

    ValueError if the decoder alone is larger by half an encoder layer or more.
    """
    bare = replace(shape, decoder_depth=decoder_depth, encoder_depth=0)
    layer = parameters(replace(bare, encoder_depth=1), diffusion) - parameters(bare, diffusion)
    depth = round((parameters(shape, diffusion) - parameters(bare, diffusion)) / layer)
    if depth < 0:
        raise ValueError(f"a decoder of {decoder_depth} layers is larger than the whole preset")
    return replace(bare, encoder_depth=depth)


def parameters(shape: DenoiserConfig, diffusion: MultinomialDiffusion) -> int:
    """Number of parameters of the denoiser of t = 2, without allocating it."""
    with torch.device("meta"):
        return sum(p.numel() for p in Denoiser(shape, diffusion, 2).parameters())


# ── seconds ───────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def measure_split(
    shape: DenoiserConfig, diffusion, tenths: list[float], device: torch.device, config: Config
) -> dict:
    """One image's tokens at t = 2: seconds and passes by each method, with the encoder."""
    torch.manual_seed(config.seed)
    denoiser = Denoiser(shape, diffusion, 2).eval().to(device, DTYPES[config.dtype])
    plans = {2: pass_starts(tenths, shape.n, default_window(device))}
    ways = {"parallel": partial(decode_replayed, plans), "sequential": decode_sequential}
    x_t = uniform_tokens([config.seed], 2, shape.n, denoiser.K).to(device)
    noise = gumbel([config.seed], 2, shape.n, denoiser.K).to(device)
    row = {
        "decoder_depth": shape.decoder_depth,
        "encoder_depth": shape.encoder_depth,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
    }
    clock = partial(timed, repeats=config.repeats, device=device, batch=1)
    for method, decode in ways.items():
        row[method] = with_passes(clock, partial(decode, denoiser, x_t, noise, Filter()))
    return row


def plot_split(report: dict) -> show.Picture:
    """Tokens per second against the depth of the decoder."""
    rows, n = report["rows"], report["tokens"]
    lines = {method: [n / row[method]["median_s"] for row in rows] for method in METHODS}
    depths = [row["decoder_depth"] for row in rows]
    return show.curves(lines, depths, "decoder layers", "tokens a second")


def summary_line(row: dict) -> str:
    ways = [f"{row[m]['median_s']:.3f} s, {row[m]['passes']} passes {m}" for m in METHODS]
    return (
        f"{row['encoder_depth']:2} + {row['decoder_depth']:2} layers  "
        f"{row['parameters'] / 1e6:.2f} M parameters  " + "  ".join(ways)
    )


def summary(report: dict) -> str:
    return "\n".join(map(summary_line, report["rows"]))


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
