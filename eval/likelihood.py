"""The bound of eq. 2, scale by scale, on held-out images: nats and bits per token.

    python eval/likelihood.py --model imagebart/pretrained/scenery --out likelihood.json

Beside each scale stands the closed-form predictor, which knows the noise and how frequent each
token is but sees one position only: p(x_{t-1} | x_t) ∝ q(x_t | x_{t-1}) Σ u(x_1) q(x_{t-1} | x_1).
A denoiser that is not clearly below it has learned nothing. `--baseline DIR` adds the sum of
another chain on the same images, for instance a T = 2 model.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from imagebart import ImageBART, distributed
from imagebart.checkpoint import sha256_of, write_json
from imagebart.data import open_data
from imagebart.model import SHIPPED
from imagebart.receipts import receipt


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
    train = tokens_of(model, config.data, "train", config.n_frequency)
    x_1 = tokens_of(model, config.data, "validation", config.n)
    frequency = torch.bincount(train.flatten(), minlength=model.K).float() + 1
    u = frequency / frequency.sum()

    report = {"n": config.n, "seed": config.seed, "K": model.K, "T": model.T}
    report["unigram_entropy"] = -(u * u.log()).sum().item()
    report["scales"] = chain_losses(model, x_1, config, frequency)
    report["sum"] = sum(row["nats"] for row in report["scales"].values())
    report["bits_per_token"] = report["sum"] / math.log(2)
    if config.baseline:
        other = ImageBART.from_pretrained(config.baseline, device=device)
        rows = chain_losses(other, x_1, config, frequency)
        report["baseline"] = {"T": other.T, "scales": rows}
        report["baseline"]["sum"] = sum(row["nats"] for row in rows.values())
    files = sorted(Path(config.model).glob("*.safetensors"))
    report["sha256"] = {path.name: sha256_of(path) for path in files}
    return report | receipt(device)


def tokens_of(model: ImageBART, data: str, split: str, count: int) -> Tensor:
    """x_1 of the first `count` images of a split, (b, n)."""
    images = open_data(data, model.image_size[0], split, count)
    grids = []
    with torch.inference_mode():
        for i in tqdm(range(len(images)), desc=f"encode {split}", mininterval=5):
            grids.append(model.vqgan.encode(images[i]["image"][None].to(model.device)))
    return rearrange(torch.cat(grids), "b h w -> b (h w)")


@torch.inference_mode()
def chain_losses(model: ImageBART, x_1: Tensor, config: Config, frequency: Tensor) -> dict:
    """{t: nats per token of the denoiser, of the closed form, and the denoiser's parameters}."""
    diffusion, rows = model.diffusion, {}
    for t, denoiser in model.denoisers.items():
        generator = torch.Generator().manual_seed(config.seed)
        x_prev, x_t = (x.to(x_1.device) for x in diffusion.q_sample_pair(x_1.cpu(), t, generator))
        nats = closed = 0.0
        for part in tqdm(
            torch.arange(len(x_1)).split(config.batch), desc=f"t = {t}", mininterval=5
        ):
            logits = denoiser(x_prev[part], x_t[part])
            nats += diffusion.loss_t(logits, x_t[part], x_1[part], t).sum().item()
            guess = diffusion.closed_form_predictor(x_t[part], t, frequency).log()
            closed += diffusion.loss_t(guess, x_t[part], x_1[part], t).sum().item()
        parameters = sum(p.numel() for p in denoiser.parameters())
        rows[t] = {
            "nats": nats / x_1.numel(),
            "closed_form": closed / x_1.numel(),
            "parameters": parameters,
        }
    return rows


def table(report: dict) -> str:
    lines = ["t    nats/token   closed form   parameters"]
    for t, row in report["scales"].items():
        lines.append(
            f"{t}    {row['nats']:10.3f}   {row['closed_form']:11.3f}   {row['parameters']:,}"
        )
    lines.append(f"sum  {report['sum']:10.3f}   ({report['bits_per_token']:.3f} bits per token)")
    if "baseline" in report:
        baseline = report["baseline"]
        lines.append(f"baseline, T = {baseline['T']}: {baseline['sum']:.3f} nats per token")
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
