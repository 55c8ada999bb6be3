"""How fast pictures come, beside what else one could use, and how near to what the chip can do.

    python eval/speed.py --out eval/results/scenery_speed.json                  # the shipped model
    python eval/speed.py --shape ffhq-4 --batches 1 --repeats 2                 # random weights

For each batch: seconds a batch (median and 95th percentile) and images a second of the whole chain,
VQGAN included, decoded `sequential`ly (cached, a token a pass) and in `parallel` (exact, fewer
passes); of an edit with a tenth of the tokens marked; of the VQGAN alone. For each scale: passes of
either way, and at batch 1 what the naive decoder would take that runs encoder and prefix again for
every token (as the released code does; summed from a few lengths), and Hugging Face's BART with its
cache at the same width, depths and length. Rooflines: bytes and operations of a sequential pass
over the bandwidth and the peak that were measured in the same run.

Time nothing else meanwhile. The first call of everything is not counted.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from completion import counted_passes

from imagebart import ImageBART, distributed
from imagebart.checkpoint import write_json
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.editing import edit_steps
from imagebart.model import SHIPPED
from imagebart.presets import find_preset
from imagebart.receipts import receipt
from imagebart.sampling import METHODS, Filter, gumbel, uniform_tokens
from imagebart.vqgan import VQGAN

PREFIXES = 8  # lengths at which the naive decoder is timed


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED  # folder of the chain
    shape: str | None = None  # instead: random weights of this row of presets.py
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 5
    rivals: bool = True  # time the naive decoder and BART as well
    seed: int = 0
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    device = distributed.pick_device(config.device)
    model = random_model(config.shape) if config.shape else ImageBART.from_pretrained(config.model)
    model = model.to(device)
    report = {
        "model": config.shape or str(config.model),
        "T": model.T,
        "tokens": model.denoisers[2].n,
    }
    report["ceilings"] = ceilings(device)
    report["chain"] = {b: whole_chain(model, b, config) for b in config.batches}
    report["scales"] = {
        t: one_scale(model, t, config, report["ceilings"]) for t in sorted(model.denoisers)
    }
    if device.type == "cuda":
        report["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return report | {"repeats": config.repeats, "seed": config.seed} | receipt(device)


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


def whole_chain(model: ImageBART, batch: int, config: Config) -> dict:
    """Seconds a batch from noise to pixels, each way, and of its parts."""
    tokens = model.encode(torch.rand(1, 3, *model.image_size))
    hole = tenth(model, config.seed)

    def draw(method: str) -> None:
        model.sample(batch, seed=config.seed, method=method, output_type="pt")

    def edit(method: str) -> None:
        *_, last = edit_steps(model, tokens, hole, batch, seed=config.seed, method=method)
        model.generate(last.tokens)

    rows = {}
    for method in METHODS:
        rows[method] = timed(partial(draw, method), config.repeats, model.device, batch)
        with counted_passes() as passes:
            draw(method)
        rows[method]["passes"] = passes[0]
    rows["edit of a tenth, parallel"] = timed(
        lambda: edit("parallel"), config.repeats, model.device, batch
    )
    many = tokens.expand(batch, -1, -1)
    rows["VQGAN decoder"] = timed(lambda: model.generate(many), config.repeats, model.device, batch)
    return rows


def tenth(model: ImageBART, seed: int) -> torch.Tensor:
    """A square hole of about a tenth of the tokens, (1, h, w)."""
    h, w = model.grid
    side = max(1, round((h * w / 10) ** 0.5))
    top, left = np.random.default_rng(seed).integers(0, (h - side + 1, w - side + 1))
    hole = torch.zeros(1, h, w, dtype=torch.bool)
    hole[:, top : top + side, left : left + side] = True
    return hole


# ── one scale, and what else decodes it ───────────────────────────────────────────────────────


@torch.inference_mode()
def one_scale(model: ImageBART, t: int, config: Config, ceiling: dict) -> dict:
    """One image's tokens at scale t: seconds and passes, ours and others'."""
    denoiser, n, K = model.denoisers[t], model.denoisers[t].n, model.K
    x_t = uniform_tokens([config.seed], t, n, K).to(model.device)
    noise = gumbel([config.seed], t, n, K).to(model.device)
    condition = nothing(denoiser).to(model.device) if denoiser.config.condition_parts else None
    rows = {}
    for name, decode in METHODS.items():

        def run(decode=decode) -> None:
            decode(denoiser, x_t, noise, Filter(), condition)

        rows[name] = timed(run, config.repeats, model.device, 1)
        with counted_passes() as passes:
            run()
        rows[name]["passes"] = passes[0]
    rows["roofline"] = roofline(denoiser, rows["sequential"]["median_s"] / n, ceiling)
    if config.rivals:
        rows["naive"] = {"median_s": naive_seconds(denoiser, x_t, condition, config.repeats)}
        rows["bart"] = bart_seconds(denoiser, x_t, config.repeats)
    return rows


def nothing(denoiser: Denoiser) -> torch.Tensor:
    """A condition (1, m) of which nothing is given, or all zeros where it must be."""
    length = sum(length for _, length in denoiser.config.condition_parts.values())
    return torch.full((1, length), -1 if denoiser.config.droppable else 0)


def naive_seconds(denoiser: Denoiser, x_t: torch.Tensor, condition, repeats: int) -> float:
    """Encoder and whole prefix again for every token: n times the mean over a few lengths."""
    n, seconds = denoiser.n, []
    for i in range(PREFIXES):
        length = int((i + 0.5) / PREFIXES * n) + 1

        def run(length=length) -> None:
            memory, there = denoiser.encode(x_t, condition)
            prefix, present = denoiser.decoder_prefix(1, condition)
            x = torch.cat([prefix, denoiser.tokens(x_t[:, : length - 1])], dim=1)
            at = F.pad(denoiser.positions()[:length], (0, 0, denoiser.prefix.length - 1, 0))
            denoiser.head(denoiser.decoder(x + at, memory, there, present)[:, -1])

        seconds.append(timed(run, repeats, x_t.device, 1)["median_s"])
    return n * float(np.mean(seconds))


def bart_seconds(denoiser: Denoiser, x_t: torch.Tensor, repeats: int) -> dict:
    """Hugging Face's BART of this width, these depths and lengths, sampling with its cache."""
    from transformers import BartConfig, BartForConditionalGeneration  # seconds, so only here

    shape, n, K = denoiser.config, denoiser.n, denoiser.K
    heads = max(h for h in range(1, shape.heads + 1) if shape.width % h == 0)
    sizes = {"vocab_size": K + 4, "d_model": shape.width, "max_position_embeddings": n + 8}
    for part, depth in (("encoder", shape.encoder_depth), ("decoder", shape.decoder_depth)):
        depth = depth if part == "decoder" or denoiser.sees_x_t else 1
        sizes |= {f"{part}_layers": depth, f"{part}_attention_heads": heads}
        sizes[f"{part}_ffn_dim"] = 4 * shape.width
    ids = {"bos_token_id": K, "pad_token_id": K + 1, "eos_token_id": K + 2}
    bart = BartForConditionalGeneration(
        BartConfig(**sizes, **ids, decoder_start_token_id=K, forced_eos_token_id=None)
    )
    bart = bart.eval().to(x_t.device)
    source = x_t if denoiser.sees_x_t else x_t[:, :1]

    def run() -> None:
        bart.generate(source, do_sample=True, min_new_tokens=n, max_new_tokens=n, top_k=0)

    return timed(run, repeats, x_t.device, 1)


# ── the chip ──────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def ceilings(device: torch.device) -> dict:
    """Bytes a second of a large copy, read and written, and operations a second of a product."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    a = torch.ones(2048, 2048, device=device)
    copy = timed(lambda: target.copy_(source), 5, device, 1)["median_s"]
    product = timed(lambda: a @ a, 5, device, 1)["median_s"]
    return {
        "bytes_per_s": 2 * source.numel() * source.element_size() / copy,
        "flops_per_s": 2 * 2048**3 / product,
    }


def roofline(denoiser: Denoiser, seconds: float, ceiling: dict) -> dict:
    """The part of each ceiling that a pass over one token reaches: weights read, products made."""
    layers = (denoiser.decoder, denoiser.head)
    weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim > 1)
    size = next(denoiser.parameters()).element_size()
    return {
        "bandwidth": weights * size / seconds / ceiling["bytes_per_s"],
        "peak": 2 * weights / seconds / ceiling["flops_per_s"],
    }


def timed(run: Callable, repeats: int, device: torch.device, batch: int) -> dict:
    """Seconds of `run`: median, 95th percentile; the first call is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    median, high = np.percentile(seconds[1:], [50, 95])
    return {"median_s": float(median), "p95_s": float(high), "images_per_s": batch / float(median)}


def table(report: dict) -> str:
    lines = [f"{report['model']}, T = {report['T']}, {report['hardware']}", ""]
    lines += ["| batch | way | s, median | s, 95 % | images/s | passes |", "| --- " * 6 + "|"]
    for batch, rows in report["chain"].items():
        for name, row in rows.items():
            times = f"{row['median_s']:.3f} | {row['p95_s']:.3f} | {row['images_per_s']:.2f}"
            lines.append(f"| {batch} | {name} | {times} | {row.get('passes', '')} |")
    lines += ["", "| t, one image | sequential | parallel | naive | BART |", "| --- " * 5 + "|"]
    for t, rows in report["scales"].items():
        ours = [
            f"{rows[name]['median_s']:.3f} s, {rows[name]['passes']} passes"
            for name in ("sequential", "parallel")
        ]
        others = [f"{rows[name]['median_s']:.3f} s" for name in ("naive", "bart") if name in rows]
        lines.append(f"| {t} | {' | '.join(ours + (others or ['', '']))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    try:
        report = main(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(report))
    if config.out:
        write_json(report, config.out)
