"""Rejection sampling (table 2) and re-ranking (section 4.2) on the shipped models.

    python eval/selection.py --out selection.json

Rejection: `per_class` samples of every class, without guidance. At acceptance rate r the sample
with the highest class probability by the probe is kept of every 1/r; class accuracy and inception
score of the kept samples, both by the probe. The score is a mean over subsets of equal size, as it
grows with the number of images.

Re-ranking: `candidates` samples for each of `captions` held-out captions; of the first 1, 2, 4, …
the one most similar to the caption is kept; cosine similarity, and accuracy of the caption's
attributes. The probe both selects and evaluates, as in the paper.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from records import options_of, run_record
from reporting import run
from torch import Tensor
from tqdm import tqdm

from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.probe import ATTRIBUTES, Probe

RATES = (1.0, 0.5, 0.25, 0.05)


@dataclass(frozen=True)
class Config:
    model: str = str(SHIPPED)  # a folder or a Hub id
    per_class: int = 100  # samples of a class; a multiple of 20
    captions: int = 40
    candidates: int = 16  # of each caption
    probe: Path | None = None  # the shipped one unless given
    batch: int = 16
    seed: int = 0
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.per_class % 20 or config.per_class < 20:
        raise ValueError(f"per_class must be a multiple of 20, got {config.per_class}")
    device = pick_device(config.device)
    model = ImageBART.from_pretrained(config.model, device=device)
    probe, began = Probe(config.probe).to(device), time.perf_counter()
    report = {"rejection": rejection_rates(model, probe, config)}
    report["re-ranking"] = reranking(model, probe, config)
    cost = {"seconds": time.perf_counter() - began}
    return report | {
        "options": options_of(config),
        "probe": probe.sha256,
        **cost,
        **run_record(device),
    }


# ── table 2 ───────────────────────────────────────────────────────────────────────────────────


def rejection_rates(model: ImageBART, probe: Probe, config: Config) -> list[dict]:
    kinds = [ATTRIBUTES["kind"].index(name) for name in model.names["class"]]
    probabilities = []
    for name in tqdm(model.names["class"], desc="classes", mininterval=5):
        images = sampled(model, config.per_class, config, classes=name, guidance=1.0)
        parts = [probe.predict(part).attributes["kind"] for part in images]
        probabilities.append(torch.cat(parts))
    probabilities = torch.stack(probabilities)  # classes, samples, kinds
    own = torch.stack([probabilities[c, :, kind] for c, kind in enumerate(kinds)])
    fewest = round(min(RATES) * config.per_class)
    rows = []
    for rate in RATES:
        group = round(1 / rate)
        best = own.unflatten(1, (-1, group)).argmax(2)  # classes, groups
        place = best + group * torch.arange(best.shape[1])
        kept = probabilities.gather(1, place[..., None].expand(-1, -1, probabilities.shape[2]))
        right = kept.argmax(2) == torch.tensor(kinds)[:, None]
        scores = [inception_score(part.flatten(0, 1)) for part in kept.split(fewest, dim=1)]
        row = {
            "rate": rate,
            "kept": right.numel(),
            "class_accuracy": right.float().mean().item(),
            "inception_score": float(np.mean(scores)),
            "of_subsets_of": fewest * len(kinds),
        }
        rows.append(row)
        print(
            f"rate {rate:4}  class accuracy {row['class_accuracy']:.1%}  inception score "
            f"{row['inception_score']:.2f} of {len(kinds)}  ({row['kept']} kept)",
            flush=True,
        )
    return rows


def inception_score(p: Tensor) -> float:
    """exp E_x KL( p(y|x) ‖ p(y) ) of probabilities (n, classes)."""
    p = p.double()
    return (p * (p.log() - p.mean(0).log())).nansum(1).mean().exp().item()


# ── re-ranking ────────────────────────────────────────────────────────────────────────────────


def reranking(model: ImageBART, probe: Probe, config: Config) -> list[dict]:
    scenes = [
        scenery.render(scenery.scene_seed("test", i), *model.image_size)
        for i in range(config.captions)
    ]
    similarity, accuracy = [], []
    for scene in tqdm(scenes, desc="captions", mininterval=5):
        images = [*chain(*sampled(model, config.candidates, config, prompt=scene.caption))]
        similarity.append(probe(images, [scene.caption] * len(images)).cpu())
        predictions, target = probe.predict(images), scenery.said(scene)
        values = {name: predictions.values(name) for name in target}
        accuracy.append(
            [
                np.mean([values[name][i] == target[name] for name in target])
                for i in range(len(images))
            ]
        )
    similarity, accuracy = torch.stack(similarity), torch.tensor(np.array(accuracy))
    rows, n = [], 1
    while n <= config.candidates:
        best = similarity[:, :n].argmax(1, keepdim=True)
        row = {
            "best_of": n,
            "similarity": similarity.gather(1, best).mean().item(),
            "accuracy": accuracy.gather(1, best).mean().item(),
        }
        rows.append(row)
        print(
            f"best of {n:2}  similarity {row['similarity']:.3f}  accuracy {row['accuracy']:.1%}",
            flush=True,
        )
        n *= 2
    return rows


def sampled(model: ImageBART, n: int, config: Config, **options) -> Iterator[list]:
    """n samples with seeds seed, seed + 1, …, in batches."""
    for start in range(0, n, config.batch):
        count = min(config.batch, n - start)
        yield model.sample(count, seed=config.seed + start, **options)


if __name__ == "__main__":
    run(main, Config, __doc__)
