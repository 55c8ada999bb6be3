"""The bound of eq. 2, scale by scale, on held-out images: nats and bits per token.

    python eval/likelihood.py --model imagebart/pretrained/scenery --out likelihood.json

Beside each scale stands the closed-form predictor, which knows the noise and how frequent each
token is but sees one position only: p(x_{t-1} | x_t) ∝ q(x_t | x_{t-1}) Σ u(x_1) q(x_{t-1} | x_1).
A denoiser that is not clearly below it has learned nothing. `--baseline DIR` adds the sum of
another chain on the same images, for instance a T = 2 model.
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
from imagebart.data.sources import open_data
from imagebart.folders import SHIPPED
from imagebart.guidance import ask


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
    x_1, said = tokens_of(model, config.data, "validation", config.n)
    frequency = torch.bincount(train.flatten(), minlength=model.K).float() + 1
    u = frequency / frequency.sum()

    report = {"n": config.n, "seed": config.seed, "K": model.K, "T": model.T}
    report["unigram_entropy"] = -(u * u.log()).sum().item()
    report["scales"] = chain_losses(model, x_1, said, config, frequency)
    report["sum"] = sum(row["nats"] for row in report["scales"].values())
    report["bits_per_token"] = report["sum"] / math.log(2)
    if config.baseline:
        other = ImageBART.from_pretrained(config.baseline, device=device)
        rows = chain_losses(other, x_1, said, config, frequency)
        report["baseline"] = {"T": other.T, "scales": rows}
        report["baseline"]["sum"] = sum(row["nats"] for row in rows.values())
    files = sorted(Path(config.model).glob("*.safetensors"))
    report["sha256"] = {path.name: sha256_of(path) for path in files}
    return report | run_record(device)


def tokens_of(model: ImageBART, data: str, split: str, count: int) -> tuple[Tensor, dict]:
    """x_1 of the first `count` images of a split, (b, n), and what is said of them."""
    images = open_data(data, model.image_size[0], split, count)
    grids, said = [], {"classes": [], "prompt": [], "semantic_map": []}
    with torch.inference_mode():
        for i in tqdm(range(len(images)), desc=f"encode {split}", mininterval=5):
            item = images[i]
            grids.append(model.vqgan.encode(item["image"][None].to(model.device)))
            label = item["label"]
            said["classes"].append(label if label >= 0 else None)
            said["prompt"].append(item["caption"])
            said["semantic_map"].append(item.get("map"))
    return rearrange(torch.cat(grids), "b h w -> b (h w)"), said


def conditions_of(model: ImageBART, said: dict, count: int) -> tuple[Tensor | None, Tensor | None]:
    """(the condition that says nothing, the one that says all the model takes), if it takes any."""
    config = model.denoisers[model.T].config
    takes = {"classes": config.classes, "prompt": config.text_length}
    takes["semantic_map"] = config.map_kinds
    told = {name: said[name] for name, size in takes.items() if size}
    if not told:
        return None, None
    silent = ask(model, count, guidance=1.0).condition if config.droppable else None
    return silent, ask(model, count, guidance=1.0, **told).condition


@torch.inference_mode()
def chain_losses(
    model: ImageBART, x_1: Tensor, said: dict, config: Config, frequency: Tensor
) -> dict:
    """{t: nats per token of the denoiser, of the closed form, and the denoiser's parameters}.

    A model with conditions is asked without them, and with all that the data say ("told").
    """
    diffusion, rows = model.diffusion, {}
    silent, told = conditions_of(model, said, len(x_1))
    for t, denoiser in model.denoisers.items():
        generator = torch.Generator().manual_seed(config.seed)
        x_prev, x_t = (x.to(x_1.device) for x in diffusion.q_sample_pair(x_1.cpu(), t, generator))
        nats = closed = nats_told = 0.0
        for part in tqdm(
            torch.arange(len(x_1)).split(config.batch), desc=f"t = {t}", mininterval=5
        ):
            tokens = x_t[part], x_1[part], t
            if told is not None:
                logits = denoiser(x_prev[part], x_t[part], told[part])
                nats_told += diffusion.loss_t(logits, *tokens).sum().item()
            if told is None or silent is not None:
                condition = None if silent is None else silent[part]
                logits = denoiser(x_prev[part], x_t[part], condition)
                nats += diffusion.loss_t(logits, *tokens).sum().item()
            guess = diffusion.closed_form_predictor(x_t[part], t, frequency).log()
            closed += diffusion.loss_t(guess, *tokens).sum().item()
        parameters = sum(p.numel() for p in denoiser.parameters())
        rows[t] = {
            "nats": (nats or nats_told) / x_1.numel(),
            "closed_form": closed / x_1.numel(),
            "parameters": parameters,
        }
        if told is not None:
            rows[t]["nats_told"] = nats_told / x_1.numel()
    return rows


def table(report: dict) -> str:
    lines = ["t    nats/token   closed form   parameters"]
    for t, row in report["scales"].items():
        lines.append(
            f"{t}    {row['nats']:10.3f}   {row['closed_form']:11.3f}   {row['parameters']:,}"
        )
    lines.append(f"sum  {report['sum']:10.3f}   ({report['bits_per_token']:.3f} bits per token)")
    if all("nats_told" in row for row in report["scales"].values()):
        told = ", ".join(f"{row['nats_told']:.3f}" for row in report["scales"].values())
        lines.append(f"told all that the data say: {told}")
    if "baseline" in report:
        baseline = report["baseline"]
        lines.append(f"baseline, T = {baseline['T']}: {baseline['sum']:.3f} nats per token")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, table)
