"""The bound of eq. 2 per scale on held-out images: nats and bits per token.

    python eval/likelihood.py --model imagebart/pretrained/scenery --out likelihood.json

The baseline of each scale is the closed-form predictor, which uses the token frequencies u and x_t
at the same position only: p(x_{t-1} | x_t) ∝ q(x_t | x_{t-1}) Σ u(x_1) q(x_{t-1} | x_1). A useful
denoiser is clearly below it. `--baseline DIR` adds the sum of another chain on the same images,
for instance a T = 2 model.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from records import run_record
from reporting import run
from torch import Tensor
from tqdm import tqdm

from imagebart import ImageBART, distributed
from imagebart.checkpoint import sha256_of
from imagebart.conditions import CONDITIONS
from imagebart.data.sources import open_data
from imagebart.folders import SHIPPED
from imagebart.guidance import encode_condition


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED  # folder of the chain
    baseline: Path | None = None  # folder of another chain with the same VQGAN
    data: str = "scenery"  # "scenery", or a folder of images
    n: int = 500  # held-out images
    n_frequency: int = 2000  # training images that give the token frequencies
    batch: int = 20
    seed: int = 0  # of the noise
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    device = distributed.pick_device(config.device)
    model = ImageBART.from_pretrained(config.model, device=device)
    train, _ = tokens_of(model, config.data, "train", config.n_frequency)
    x_1, conditions = tokens_of(model, config.data, "validation", config.n)
    frequency = torch.bincount(train.flatten(), minlength=model.K).float() + 1
    u = frequency / frequency.sum()

    report = {"n": config.n, "seed": config.seed, "K": model.K, "T": model.T}
    report["unigram_entropy"] = -(u * u.log()).sum().item()
    report["scales"] = chain_losses(model, x_1, conditions, config, frequency)
    report["sum"] = sum(row["nats"] for row in report["scales"].values())
    report["bits_per_token"] = report["sum"] / math.log(2)
    if config.baseline:
        other = ImageBART.from_pretrained(config.baseline, device=device)
        rows = chain_losses(other, x_1, conditions, config, frequency)
        report["baseline"] = {"T": other.T, "scales": rows}
        report["baseline"]["sum"] = sum(row["nats"] for row in rows.values())
    files = sorted(Path(config.model).glob("*.safetensors"))
    report["sha256"] = {path.name: sha256_of(path) for path in files}
    return report | run_record(device)


def tokens_of(model: ImageBART, data: str, split: str, count: int) -> tuple[Tensor, dict]:
    """x_1 (b, n) of the first `count` images of a split, and their conditions."""
    images = open_data(data, model.image_size[0], split, count)
    grids, conditions = [], {"class": [], "text": [], "map": []}
    with torch.inference_mode():
        for i in tqdm(range(len(images)), desc=f"encode {split}", mininterval=5):
            item = images[i]
            grids.append(model.vqgan.encode(item["image"][None].to(model.device)))
            conditions["class"].append(item["class"] if item["class"] >= 0 else None)
            conditions["text"].append(item["text"])
            conditions["map"].append(item.get("map"))
    return rearrange(torch.cat(grids), "b h w -> b (h w)"), conditions


def encoded_conditions(
    model: ImageBART, conditions: dict, count: int
) -> tuple[Tensor | None, Tensor | None]:
    """The encoded conditions (empty, complete); empty is None if the model needs a condition, both
    are None if it takes none."""
    if not model.conditions:
        return None, None
    given = {CONDITIONS[name].option: conditions[name] for name in model.conditions}
    empty = None
    if model.condition_dropout:
        empty = encode_condition(model, count, guidance=1.0).condition
    return empty, encode_condition(model, count, guidance=1.0, **given).condition


@torch.inference_mode()
def chain_losses(
    model: ImageBART, x_1: Tensor, conditions: dict, config: Config, frequency: Tensor
) -> dict:
    """{t: nats per token of the denoiser, of the closed form, and the denoiser's parameters}.

    For a conditional model both the unconditional loss and that with all conditions of the data.
    """
    diffusion, rows = model.diffusion, {}
    empty, complete = encoded_conditions(model, conditions, len(x_1))
    for t, denoiser in model.denoisers.items():
        generator = torch.Generator().manual_seed(config.seed)
        x_prev, x_t = (x.to(x_1.device) for x in diffusion.q_sample_pair(x_1.cpu(), t, generator))
        nats = closed = nats_conditional = 0.0
        for part in tqdm(
            torch.arange(len(x_1)).split(config.batch), desc=f"t = {t}", mininterval=5
        ):
            tokens = x_t[part], x_1[part], t
            if complete is not None:
                logits = denoiser(x_prev[part], x_t[part], complete[part])
                nats_conditional += diffusion.loss_t(logits, *tokens).sum().item()
            if complete is None or empty is not None:
                condition = None if empty is None else empty[part]
                logits = denoiser(x_prev[part], x_t[part], condition)
                nats += diffusion.loss_t(logits, *tokens).sum().item()
            guess = diffusion.closed_form_predictor(x_t[part], t, frequency).log()
            closed += diffusion.loss_t(guess, *tokens).sum().item()
        parameters = sum(p.numel() for p in denoiser.parameters())
        rows[t] = {
            "nats": (nats or nats_conditional) / x_1.numel(),
            "closed_form": closed / x_1.numel(),
            "parameters": parameters,
        }
        if complete is not None:
            rows[t]["nats_conditional"] = nats_conditional / x_1.numel()
    return rows


def summary(report: dict) -> str:
    lines = ["t    nats/token   closed form   parameters"]
    for t, row in report["scales"].items():
        lines.append(
            f"{t}    {row['nats']:10.3f}   {row['closed_form']:11.3f}   {row['parameters']:,}"
        )
    lines.append(f"sum  {report['sum']:10.3f}   ({report['bits_per_token']:.3f} bits per token)")
    if all("nats_conditional" in row for row in report["scales"].values()):
        nats = ", ".join(f"{row['nats_conditional']:.3f}" for row in report["scales"].values())
        lines.append(f"conditional on all that the data give: {nats}")
    if "baseline" in report:
        baseline = report["baseline"]
        lines.append(f"baseline, T = {baseline['T']}: {baseline['sum']:.3f} nats per token")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
