"""The bound of eq. 2 per scale on held-out images: nats and bits per token.

    python eval/likelihood.py --model imagebart/pretrained/scenery --out likelihood.json

The baseline of each scale is the closed-form predictor, which uses the token frequencies u and x_t
at the same position only: p(x_{t-1} | x_t) ∝ q(x_t | x_{t-1}) Σ u(x_1) q(x_{t-1} | x_1). A useful
denoiser is clearly below it. `--baseline DIR` adds the sum of another chain with the same VQGAN on
the same images, for instance a T = 2 model, and the paired difference. Intervals are of 95 % over
images. The sum of T = 2 is the exact negative log-likelihood of the tokens, that of a longer chain
an upper bound of it; `--importance M` estimates by M chains how loose it is at least
(importance.py).
"""

import math
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from importance import log_weight, weighted
from records import Run, image_digest, sha256_of_images
from reporting import run
from rows import ImageRows
from torch import Tensor
from tqdm import tqdm
from uncertainty import mean_difference, mean_interval

from imagebart import ImageBART, distributed
from imagebart.conditions import CONDITIONS
from imagebart.data.images import to_pil
from imagebart.data.sources import HELD_OUT, open_data
from imagebart.folders import SHIPPED
from imagebart.guidance import encode_condition

CLOSED = "closed_form"


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED  # folder of the chain
    baseline: Path | None = None  # folder of another chain with the same VQGAN
    data: str = "scenery"  # "scenery", or a folder of images
    held_out: float = HELD_OUT  # share of a folder without splits that training held out
    n: int = 500  # held-out images
    n_frequency: int = 2000  # training images that give the token frequencies
    importance: int = 0  # chains of each image, which show how loose the bound is; 0: none
    batch: int = 20
    seed: int = 0  # of the noise
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    device = distributed.pick_device(config.device)
    models = [config.model, *([config.baseline] if config.baseline else [])]
    measured = Run(config, models)
    model, *others = (ImageBART.from_pretrained(one, device=device) for one in models)
    for other in others:
        require_same_vqgan(model, other, config.baseline)
    train, *_ = tokens_of(model, config, "train", config.n_frequency)
    x_1, conditions, digests = tokens_of(model, config, "validation", config.n)
    measured.reads(images=sha256_of_images(digests))
    frequency = torch.bincount(train.flatten(), minlength=model.K).float() + 1
    u = frequency / frequency.sum()

    report = {"K": model.K, "T": model.T, "unigram_entropy": -(u * u.log()).sum().item()}
    report |= summed(chain_losses(model, x_1, conditions, config, frequency, measured))
    report["bits_per_token"] = report["sum"] / math.log(2)
    tokens, (H, W) = x_1.shape[1], model.image_size
    report["bits_per_pixel_dimension"] = report["bits_per_token"] * tokens / (3 * H * W)
    each = report.pop("each")
    if config.importance:
        report["importance"] = looseness(model, x_1, conditions, config, measured)
    for other in others:
        rows = chain_losses(other, x_1, conditions, config, frequency, measured, "baseline-")
        report["baseline"] = {"T": other.T, **summed(rows)}
        theirs = report["baseline"].pop("each")
        report["baseline"]["ours_minus_theirs"] = mean_difference(each, theirs)
    return report | measured.record(
        device, data=sha256_of_images(digests), n=len(x_1), seeds=(config.seed, config.seed)
    )


def require_same_vqgan(model: ImageBART, other: ImageBART, source: Path) -> None:
    """ValueError unless both chains model the same tokens."""
    ours, theirs = model.vqgan.state_dict(), other.vqgan.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    if not same:
        raise ValueError(f"baseline must have the model's VQGAN, got another one in {source}")


def summed(scales: dict[int, dict]) -> dict:
    """{scales, sum, its interval, the sum of each image}."""
    each = sum(row.pop("each") for row in scales.values())
    total = sum(row["nats"] for row in scales.values())
    return {"scales": scales, "sum": total, "sum_interval": mean_interval(each), "each": each}


def tokens_of(
    model: ImageBART, config: Config, split: str, count: int
) -> tuple[Tensor, dict, list[bytes]]:
    """x_1 (b, n) of the first `count` images of a split, their conditions and their digests."""
    size = model.image_size[0]
    images = open_data(config.data, size, split, count, held_out=config.held_out)
    grids, conditions, digests = [], {"class": [], "text": [], "map": []}, []
    with torch.inference_mode():
        for i in tqdm(range(len(images)), desc=f"encode {split}", mininterval=5):
            item = images[i]
            grids.append(model.vqgan.encode(item["image"][None].to(model.device)))
            digests.append(image_digest(np.asarray(to_pil(item["image"])[0])))
            conditions["class"].append(item["class"] if item["class"] >= 0 else None)
            conditions["text"].append(item["text"])
            conditions["map"].append(item.get("map"))
    return rearrange(torch.cat(grids), "b h w -> b (h w)"), conditions, digests


def encoded_conditions(model: ImageBART, conditions: dict, count: int) -> dict[str, Tensor | None]:
    """{figure: the conditions that are given, encoded}, for every figure that the model can have.

    `nats` are given nothing, `nats_conditional` all that the data give, and `nats_without_map` all
    but the map.
    """
    given = {}
    if not model.conditions or model.condition_dropout:
        given["nats"] = ()
    if model.conditions:
        given["nats_conditional"] = (*model.conditions,)
    if "map" in model.conditions and len(model.conditions) > 1 and model.condition_dropout:
        given["nats_without_map"] = tuple(name for name in model.conditions if name != "map")
    options = {
        figure: {CONDITIONS[name].option: conditions[name] for name in names}
        for figure, names in given.items()
    }
    return {
        figure: encode_condition(model, count, guidance=1.0, **own).condition
        for figure, own in options.items()
    }


@torch.inference_mode()
def chain_losses(
    model: ImageBART,
    x_1: Tensor,
    conditions: dict,
    config: Config,
    frequency: Tensor,
    measured: Run,
    name: str = "",
) -> dict[int, dict]:
    """{t: nats per token of the denoiser, their interval and map, of the closed form, the
    denoiser's parameters, and `each`, the nats of each image}.

    For a conditional model also the losses given its conditions (`encoded_conditions`).
    """
    given = encoded_conditions(model, conditions, len(x_1))
    rows, n = {}, x_1.shape[1]
    for t, denoiser in model.denoisers.items():
        kept = measured.rows(f"{name}{t}", len(x_1), dict.fromkeys([*given, CLOSED], ("f4", n)))
        generator = torch.Generator().manual_seed(config.seed)
        pair = model.diffusion.q_sample_pair(x_1.cpu(), t, generator)
        x_prev, x_t = (x.to(x_1.device) for x in pair)
        for part in tqdm([*kept.missing(batch=config.batch)], desc=f"t = {t}", mininterval=5):
            closed = model.diffusion.closed_form_predictor(x_t[part], t, frequency)
            logits = {CLOSED: closed.log()} | {
                kind: denoiser(x_prev[part], x_t[part], None if all_ is None else all_[part])
                for kind, all_ in given.items()
            }
            where = x_t[part], x_1[part], t
            kept.put(part, **{k: model.diffusion.loss_t(x, *where) for k, x in logits.items()})
        rows[t] = scale_row(kept, given.keys(), sum(p.numel() for p in denoiser.parameters()))
    return rows


@torch.inference_mode()
def looseness(
    model: ImageBART, x_1: Tensor, conditions: dict, config: Config, measured: Run
) -> dict:
    """{chains, nats a token of one chain and of all, and the difference, with its interval}.

    Given nothing, or all that the data give where the model needs it.
    """
    condition, *_ = encoded_conditions(model, conditions, len(x_1)).values()
    M = config.importance
    kept = measured.rows("importance", len(x_1), {"log_w": ("f8", M)})
    for part in tqdm([*kept.missing()], desc="importance", mininterval=5):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + part[0])
        own = None if condition is None else condition[part]
        draws = [log_weight(model, x_1[part], own, generator) for _ in range(M)]
        kept.put(part, log_w=torch.stack(draws, dim=1))
    log_w, n = torch.from_numpy(kept["log_w"]), x_1.shape[1]
    one, all_ = (weighted(x).numpy() / n for x in (log_w[..., None], log_w))
    gained = one.mean(1) - all_
    return {
        "chains": M,
        "nats_of_one": one.mean().item(),
        "nats": all_.mean().item(),
        "gained": gained.mean().item(),
        "gained_interval": mean_interval(gained),
    }


def scale_row(kept: ImageRows, given: Set[str], parameters: int) -> dict:
    """The figures of one scale from the nats of every token."""
    own = "nats" if "nats" in given else "nats_conditional"
    each = kept[own].mean(1, dtype=float)
    row = {
        "nats": each.mean().item(),
        "interval": mean_interval(each),
        "closed_form": kept[CLOSED].mean(dtype=float).item(),
        "parameters": parameters,
        "map": [round(nats, 3) for nats in kept[own].mean(0, dtype=float).tolist()],
        "each": each,
    }
    for figure in given - {"nats"}:
        conditional = kept[figure].mean(1, dtype=float)
        row[figure] = conditional.mean().item()
        row[figure.replace("nats", "interval")] = mean_interval(conditional)
    return row


def summary(report: dict) -> str:
    lines = ["t    nats/token   closed form   parameters"]
    for t, row in report["scales"].items():
        lines.append(
            f"{t}    {row['nats']:10.3f}   {row['closed_form']:11.3f}   {row['parameters']:,}"
        )
    lines.append(f"sum  {report['sum']:10.3f}   ({report['bits_per_token']:.3f} bits per token)")
    for figure, given in (
        ("nats_without_map", "all but the map"),
        ("nats_conditional", "all that the data give"),
    ):
        if all(figure in row for row in report["scales"].values()):
            nats = ", ".join(f"{row[figure]:.3f}" for row in report["scales"].values())
            lines.append(f"conditional on {given}: {nats}")
    if "importance" in report:
        row = report["importance"]
        low, high = row["gained_interval"]
        lines.append(
            f"by {row['chains']} weighted chains: {row['nats']:.3f}; the bound is loose by at "
            f"least {row['gained']:.4f}, {low:.4f} to {high:.4f}"
        )
    if "baseline" in report:
        baseline = report["baseline"]
        lines.append(f"baseline, T = {baseline['T']}: {baseline['sum']:.3f} nats per token")
        apart = baseline["ours_minus_theirs"]
        low, high = apart["interval"]
        note = "" if apart["distinct"] else ", within the noise"
        lines.append(f"ours minus theirs: {apart['value']:.3f}, {low:.3f} to {high:.3f}{note}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
