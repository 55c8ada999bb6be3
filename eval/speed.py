"""Decoding speed compared with other methods and with the hardware's limits (rooflines).

    python eval/speed.py --out eval/results/scenery_speed.json                  # the shipped model
    python eval/speed.py --shape ffhq-4 --passes-of imagebart/pretrained/scenery --batches 1

For each batch: seconds a batch (median and 95th percentile), images a second and growth of memory
of the whole chain, VQGAN included, decoded `sequential`ly (cached, a token a pass) and in
`parallel` (exact, fewer passes); of an edit with a tenth of the tokens masked; of the VQGAN alone.
For each scale: passes of either way, and at batch 1 what the naive decoder would take that runs
encoder and prefix again for every token (as the released code does; summed from a few lengths), and
Hugging Face's BART with its cache at the same width, depths, length and precision. For one image:
all that side by side, and DDPM, of which a few steps are timed. Rooflines: bytes and operations of
a sequential pass over the bandwidth and the peak that were measured in the same run.

A shape has random weights, which do not have the passes of trained ones: it takes those of the
chain `--passes-of` (eval/replay.py).

Run nothing else at the same time. The first call of each timing is not counted.
"""

from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from records import PACKAGES, Run, recorded
from replay import decode_replayed, plans_of, profile
from reporting import run
from rivals import bart_seconds, ddpm_seconds, naive_seconds
from timing import DTYPES, ceilings, open_unconditional, roofline, timed, with_passes

from imagebart import ImageBART, distributed
from imagebart.choice import Filter
from imagebart.conditions import ABSENT
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.editing.process import edit_steps
from imagebart.folders import SHIPPED
from imagebart.notation import Tokens
from imagebart.presets import find_preset
from imagebart.sampling import (
    METHODS,
    Decode,
    Draft,
    OnPass,
    decode_parallel,
    decode_sequential,
    default_window,
    gumbel,
    uniform_tokens,
)
from imagebart.vqgan import VQGAN


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED  # folder of the chain
    shape: str | None = None  # instead: random weights of this row of presets.py …
    passes_of: Path = SHIPPED  # … with the passes of this trained chain
    passes_n: int = 16  # images over which those are measured
    batches: tuple[int, ...] = (1, 8, 50)  # batch 1 is always among them
    dtype: Literal[tuple(DTYPES)] = "fp32"  # precision of every model, ours and others'
    repeats: int = 5
    window: int | None = None  # positions a parallel pass reads; default: what suits the device
    rivals: bool = True  # time the naive decoder, BART and DDPM as well
    seed: int = 0
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    device, dtype = distributed.pick_device(config.device), DTYPES[config.dtype]
    window = config.window or default_window(device)
    packages = (*PACKAGES, *(("transformers", "diffusers") if config.rivals else ()))
    trained = config.model if config.shape is None else config.passes_of
    measured = Run(config, [trained], packages)
    model, parallel, passes = open_chain(config, device, window)
    ways = {"parallel": partial(parallel, window=window), "sequential": decode_sequential}
    model = model.to(device, dtype)
    report = {
        "model": config.shape or recorded(config.model),
        "T": model.T,
        "tokens": model.denoisers[2].n,
        "dtype": config.dtype,
        "window": window,
        **passes,
    }
    batches = sorted({1, *config.batches})  # from small to large: memory's peak never falls
    report["chain"] = {b: whole_chain(model, ways, b, config) for b in batches}
    report["ceilings"] = ceilings(device, dtype)
    report["scales"] = {
        t: one_scale(model, ways, t, *given, config, report["ceilings"])
        for t, given in sorted(given_to_scales(model, config).items())
    }
    if config.rivals:
        report["ddpm"] = ddpm_seconds(model.image_size, config.repeats, device, dtype)
    report["one_image"] = one_image(report)
    seeds = config.seed, config.seed
    return report | measured.record(device, data=None, n=config.repeats, seeds=seeds)


def open_chain(config: Config, device: torch.device, window: int) -> tuple[ImageBART, Decode, dict]:
    """(chain, its parallel decoding, the report's entries on its passes)."""
    if config.shape is None:
        model = open_unconditional(config.model, device)
        return model, decode_parallel, {"weights": "trained"}
    trained = open_unconditional(config.passes_of, device)
    tenths = profile(trained, config.passes_n, config.seed)
    model = random_model(config.shape)
    plans = plans_of(model, tenths, window)
    passes = {
        "of": recorded(config.passes_of),
        "images": config.passes_n,
        "made": "the shape's passes are computed in full, as many and where that chain, with "
        "trained weights, takes them: its passes in each tenth of the positions, over their "
        "number, mean over images and over the scales t < T",
        "per_position_in_each_tenth": tenths,
        "planned": {t: len(starts) for t, starts in plans.items()},
    }
    return model, partial(decode_replayed, plans), {"weights": "random", "passes": passes}


def random_model(name: str) -> ImageBART:
    """The shapes of a preset with random weights."""
    preset = find_preset(name)
    torch.manual_seed(0)
    vqgan = VQGAN(preset.vqgan)
    vqgan.quantiser.shrink(torch.arange(preset.K))
    diffusion = MultinomialDiffusion(preset.alpha_bar, preset.K)
    scales = {t: Denoiser(preset.denoiser(t), diffusion, t) for t in range(2, preset.T + 1)}
    return ImageBART(vqgan, diffusion, scales)


# ── our chain ─────────────────────────────────────────────────────────────────────────────────


def whole_chain(model: ImageBART, ways: dict[str, Decode], batch: int, config: Config) -> dict:
    """Seconds per batch from noise to pixels by each method, and of its parts."""
    clock = partial(timed, repeats=config.repeats, device=model.device, batch=batch)
    rows = {
        name: with_passes(clock, partial(draw_images, model, batch, decode, config.seed))
        for name, decode in ways.items()
    }
    tokens = uniform_tokens([config.seed] * batch, model.T, model.denoisers[2].n, model.K)
    tokens = tokens.reshape(batch, *model.grid).to(model.device)
    if config.shape is None:  # the passes of a profile are not an edit's
        run = partial(edit, model, tokens[:1], batch, ways["parallel"], config.seed)
        rows["edit of a tenth, parallel"] = clock(run)
    rows["VQGAN decoder"] = clock(partial(model.generate, tokens))
    return rows


def draw_images(model: ImageBART, batch: int, decode: Decode, seed: int, on_pass: OnPass) -> None:
    """From noise to pixels, all images in one batch."""
    method = partial(decode, on_pass=on_pass)
    next(model.sample_stream(batch, batch=batch, seed=seed, method=method, output_type="pt"))


def edit(model: ImageBART, tokens: torch.Tensor, batch: int, decode: Decode, seed: int) -> None:
    *_, last = edit_steps(model, tokens, tenth(model, seed), batch, seed=seed, method=decode)
    model.generate(last.tokens)


def tenth(model: ImageBART, seed: int) -> torch.Tensor:
    """A square mask of about a tenth of the tokens, (1, h, w)."""
    h, w = model.grid
    side = max(1, round((h * w / 10) ** 0.5))
    top, left = np.random.default_rng(seed).integers(0, (h - side + 1, w - side + 1))
    masked = torch.zeros(1, h, w, dtype=torch.bool)
    masked[:, top : top + side, left : left + side] = True
    return masked


# ── one scale, by all methods ───────────────────────────────────────────────────────


@torch.inference_mode()
def given_to_scales(model: ImageBART, config: Config) -> dict[int, tuple[Tokens, Draft]]:
    """{t: (x_t, the draft of the scales above)} in the chain of one image; noise at every scale of
    a shape, whose passes are planned."""
    draft, given = Draft(model.diffusion), {}
    x_t = uniform_tokens([config.seed], model.T, model.denoisers[2].n, model.K).to(model.device)
    for t in range(model.T, 1, -1):
        given[t] = x_t, copy(draft)
        if config.shape is None:
            rest = noise_of(model, t, config), Filter(), empty_condition(model.denoisers[t])
            x_t = decode_parallel(model.denoisers[t], x_t, *rest, draft=draft)
    return given


def noise_of(model: ImageBART, t: int, config: Config) -> torch.Tensor:
    return gumbel([config.seed], t, model.denoisers[t].n, model.K).to(model.device)


@torch.inference_mode()
def one_scale(
    model: ImageBART,
    ways: dict[str, Decode],
    t: int,
    x_t: Tokens,
    draft: Draft,
    config: Config,
    ceiling: dict,
) -> dict:
    """One image's tokens at scale t, from what the chain gives it: seconds and passes of all
    methods."""
    denoiser, n = model.denoisers[t], model.denoisers[t].n
    condition = empty_condition(denoiser)
    given = denoiser, x_t, noise_of(model, t, config), Filter(), condition
    clock = partial(timed, repeats=config.repeats, device=model.device, batch=1)
    rows = {
        name: with_passes(clock, partial(from_draft, decode, draft, *given))
        for name, decode in ways.items()
    }
    rows["roofline"] = roofline(denoiser, rows["sequential"]["median_s"] / n, ceiling)
    if config.rivals:
        rows["naive"] = {"median_s": naive_seconds(denoiser, x_t, condition, config.repeats)}
        rows["bart"] = bart_seconds(denoiser, x_t, config.repeats)
    return rows


def from_draft(decode: Decode, draft: Draft, *given, on_pass: OnPass) -> Tokens:
    """Decoding with a copy of the draft, which it changes."""
    return decode(*given, draft=copy(draft), on_pass=on_pass)


def empty_condition(denoiser: Denoiser) -> torch.Tensor | None:
    """An encoded condition (1, m) that is absent, or all zeros if the model needs one; None for one
    that takes none."""
    length = sum(shape.length for shape in denoiser.config.conditions.values())
    if not length:
        return None
    empty = torch.full((1, length), ABSENT if denoiser.config.condition_dropout else 0)
    return empty.to(next(denoiser.parameters()).device)


# ── side by side ──────────────────────────────────────────────────────────────────────────────


def one_image(report: dict) -> dict:
    """Seconds from noise to pixels of one image by all methods, and relative to parallel decoding.

    The naive decoder's and BART's are the sum of the scales and our VQGAN's.
    """
    ours, scales = report["chain"][1], report["scales"].values()
    seconds = {f"ours, {method}": ours[method]["median_s"] for method in METHODS}
    if "ddpm" in report:
        for name, label in (("naive", "naive decoder"), ("bart", "BART with its cache")):
            tokens = sum(rows[name]["median_s"] for rows in scales)
            seconds[label] = tokens + ours["VQGAN decoder"]["median_s"]
        seconds |= report["ddpm"]["seconds"]
    fastest = seconds["ours, parallel"]
    return {name: {"seconds": s, "over_parallel": s / fastest} for name, s in seconds.items()}


def summary(report: dict) -> str:
    head = f"{report['model']}, {report['weights']} weights, T = {report['T']}, {report['dtype']}"
    lines = [f"{head}, {report['hardware']}"]
    if "passes" in report:
        lines.append(f"passes in parallel are those of {report['passes']['of']}")
    lines += ["", "| batch | way | s, median | s, 95 % | images/s | MiB more | passes |"]
    lines += ["| --- " * 7 + "|"]
    for batch, rows in report["chain"].items():
        for name, row in rows.items():
            times = f"{row['median_s']:.3f} | {row['p95_s']:.3f} | {row['images_per_s']:.2f}"
            grown = next(value for key, value in row.items() if key.endswith("growth_bytes"))
            passes = row.get("passes", "")
            lines.append(f"| {batch} | {name} | {times} | {grown / 2**20:.0f} | {passes} |")
    lines += ["", "| t, one image | sequential | parallel | naive | BART |", "| --- " * 5 + "|"]
    for t, rows in report["scales"].items():
        ours = [
            f"{rows[name]['median_s']:.3f} s, {rows[name]['passes']} passes"
            for name in ("sequential", "parallel")
        ]
        others = [f"{rows[name]['median_s']:.3f} s" for name in ("naive", "bart") if name in rows]
        lines.append(f"| {t} | {' | '.join(ours + (others or ['', '']))} |")
    lines += ["", "| one image, pixels included | s | times ours, parallel |", "| --- " * 3 + "|"]
    for name, row in report["one_image"].items():
        lines.append(f"| {name} | {row['seconds']:.3f} | {row['over_parallel']:.2f} |")
    if "ddpm" in report:
        size, steps = report["ddpm"]["image_size"], report["ddpm"]["steps_timed"]
        lines += [
            "",
            f"DDPM and DDIM at {size[0]}×{size[1]}: {steps} steps timed, the total computed.",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
