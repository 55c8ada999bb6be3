"""Rejection sampling (table 2) and re-ranking (section 4.2) on the shipped models.

    python eval/selection.py --out selection.json

Rejection: `per_class` samples of every class, without guidance. At acceptance rate r the sample
with the highest class probability by the probe is kept of every 1/r; class accuracy, inception
score and probe-FID of the kept samples, all by the probe. Both scores are of as many samples at
every rate, since they depend on the number; probe-FID is compared with that at rate 1. Accuracy by
chance is that of shuffled classes.

Re-ranking: `candidates` samples for each of `captions` held-out captions; of the first 1, 2, 4, …
the one most similar to the caption is kept; cosine similarity, and accuracy of the caption's
attributes. The probe both selects and evaluates, as in the paper. Samples are kept as they come:
run again, it goes on.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from metrics import inception_score
from obedience import validation
from predictions import (
    Hits,
    as_columns,
    chance_of,
    columns_of,
    from_rows,
    hits_of,
    right_shares,
    share_intervals,
)
from records import Run, image_digest, sha256_of_images
from reporting import run
from rows import ImageRows
from tqdm import tqdm
from uncertainty import (
    feature_distance,
    mean_distance_difference,
    mean_distance_interval,
    mean_interval,
    share_difference,
    share_interval,
)

from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, SamplingOptions, as_dataclass, options_given
from imagebart.probe import ATTRIBUTES, SHIPPED_PROBE, Predictions, Probe

RATES = (1.0, 0.5, 0.25, 0.05)


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(SamplingOptions, without=Conditions.__annotations__)):
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
    if config.captions < 2 or config.candidates < 1:
        raise ValueError(
            "captions must be at least 2 and candidates 1, got "
            f"{config.captions}, {config.candidates}"
        )
    device = pick_device(config.device)
    measured = Run(config, [config.model, config.probe or SHIPPED_PROBE])
    model = ImageBART.from_pretrained(config.model, device=device)
    lacking = {"class", "text"} - {*model.conditions}
    if lacking:
        raise ValueError(f"model must take class and text, got one without {sorted(lacking)}")
    probe = Probe(config.probe).to(device)
    scenes = [
        scenery.render(scenery.scene_seed("test", i), *model.image_size)
        for i in range(config.captions)
    ]
    report = {"rejection": rejection_rates(model, probe, config, measured)}
    report["re-ranking"] = reranking(model, probe, scenes, config, measured)
    most = max(len(model.names["class"]) * config.per_class, config.captions * config.candidates)
    return report | measured.record(
        device,
        data=sha256_of_images(image_digest(scene.image) for scene in scenes),
        n=config.per_class,
        seeds=(config.seed, config.seed + most - 1),
        guidance=model.guidance if config.guidance is None else config.guidance,
    )


# ── table 2 ───────────────────────────────────────────────────────────────────────────────────


def rejection_rates(model: ImageBART, probe: Probe, config: Config, measured: Run) -> list[dict]:
    names, n = model.names["class"], config.per_class
    kept = measured.rows("classes", len(names) * n, columns_of(probe))
    how = {"guidance": 1.0} | options_given(config, SamplingOptions)
    batches = [
        part
        for c in range(len(names))
        for part in kept.missing(range(c * n, (c + 1) * n), config.batch)
    ]
    for part in tqdm(batches, desc="classes", mininterval=5):
        how |= {"seed": [config.seed + i for i in part]}
        images = model.sample(len(part), classes=names[part[0] // n], **how)
        kept.put(part, **as_columns(probe.predict(images)))
    predictions, classes = from_rows(kept), np.repeat(names, n)
    few = round(min(RATES) * n) * len(names)
    reference = probe.predict(validation(few, model.image_size)).features
    each = [rejected(predictions, classes, names, rate, reference) for rate in RATES]
    (_, everything), *fewer = each  # at rate 1
    for row, features in fewer:
        row["against_first"] = mean_distance_difference(features, everything, reference)
    rows = [row | {"guidance": how["guidance"]} for row, _ in each]
    for row in rows:
        print(
            f"rate {row['rate']:4}  class accuracy {row['class_accuracy']:.1%}  inception score "
            f"{row['inception_score']:.2f} of {len(names)}  probe-FID {row['probe_fid']:.1f}  "
            f"({row['kept']} kept)",
            flush=True,
        )
    return rows


def rejected(
    predictions: Predictions,
    classes: np.ndarray,
    names: list[str],
    rate: float,
    reference: torch.Tensor,
) -> tuple[dict, list[torch.Tensor]]:
    """(the figures of the likeliest of every 1/rate samples of a class, their features in sets of
    one size at every rate)."""
    kinds = torch.tensor([ATTRIBUTES["kind"].index(name) for name in names])
    probabilities = predictions.attributes["kind"].unflatten(0, (len(names), -1))
    own = probabilities.gather(2, kinds[:, None, None].expand(-1, probabilities.shape[1], 1))
    group = round(1 / rate)
    best = own[..., 0].unflatten(1, (-1, group)).argmax(2)  # classes, groups
    place = best + group * torch.arange(best.shape[1])
    at = (place + probabilities.shape[1] * torch.arange(len(names))[:, None]).flatten()
    some = some_of(predictions, at)
    hits = partial(hits_in, some, classes[at])
    fewest = round(min(RATES) * probabilities.shape[1])
    parts = at.unflatten(0, (len(names), -1)).split(fewest, dim=1)  # of one size at every rate
    features = [predictions.features[part.flatten()] for part in parts]
    row = {
        "rate": rate,
        "kept": len(at),
        "class_accuracy": right_shares(hits())["kind"],
        "class_accuracy_interval": share_intervals(hits())["kind"],
        "chance": chance_of(hits, len(at))["kind"],
        "inception_score": float(
            np.mean([score_of_kinds(some_of(predictions, part.flatten())) for part in parts])
        ),
        "probe_fid": float(np.mean([feature_distance(each, reference) for each in features])),
        "probe_fid_interval": mean_distance_interval(features, reference),
        "of_subsets_of": fewest * len(names),
    }
    return row, features


def some_of(predictions: Predictions, at: torch.Tensor) -> Predictions:
    """The predictions for some of the images."""
    return Predictions(
        predictions.features[at],
        {name: values[at] for name, values in predictions.attributes.items()},
        predictions.kinds[at],
    )


def hits_in(predictions: Predictions, classes: np.ndarray, order: np.ndarray | None = None) -> Hits:
    """Which classes are predicted, the classes in this order."""
    order = np.arange(len(classes)) if order is None else order
    return hits_of(predictions, [{"kind": name} for name in classes[order]])


def score_of_kinds(predictions: Predictions) -> float:
    """The inception score by the probe's probabilities of the kind of place."""
    logits = predictions.attributes["kind"].clamp(min=1e-30).log()
    return inception_score(logits.numpy(), seed=0, parts=1)["value"]


# ── re-ranking ────────────────────────────────────────────────────────────────────────────────


def reranking(
    model: ImageBART, probe: Probe, scenes: list[scenery.Scene], config: Config, measured: Run
) -> list[dict]:
    n, columns = config.candidates, {"similarity": ("f8", 1)}
    kept = measured.rows("captions", len(scenes) * n, columns_of(probe) | columns)
    how = options_given(config, SamplingOptions)
    for k, scene in enumerate(tqdm(scenes, desc="captions", mininterval=5)):
        for part in kept.missing(range(k * n, (k + 1) * n), config.batch):
            how |= {"seed": [config.seed + i for i in part]}
            images = model.sample(len(part), prompt=scene.caption, **how)
            similarity = probe(images, [scene.caption] * len(images)).cpu()
            kept.put(part, **as_columns(probe.predict(images)), similarity=similarity)
    (alone, (one, of)), *several = (
        best_of_first(first, kept, scenes, n) for first in powers_of_two(n)
    )
    for row, (right, _) in several:
        row["against_first"] = share_difference(right, one, of)
    return [alone, *(row for row, _ in several)]


def best_of_first(
    first: int, kept: ImageRows, scenes: list[scenery.Scene], n: int
) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """The figures of the most similar of the first so many candidates of each caption; of each
    caption how many attributes are found, and how many there are."""
    similarity = kept["similarity"].reshape(len(scenes), n)[:, :first]
    at = torch.from_numpy(similarity.argmax(1) + n * np.arange(len(scenes)))
    predictions, said = some_of(from_rows(kept), at), [scenery.said(scene) for scene in scenes]

    def hits(order: np.ndarray) -> Hits:
        return hits_of(predictions, [said[i] for i in order])

    right, of = hits(np.arange(len(scenes)))["all"]
    row = {
        "best_of": first,
        "similarity": float(similarity.max(1).mean()),
        "similarity_interval": mean_interval(similarity.max(1)),
        "accuracy": float(right.sum() / of.sum()),
        "accuracy_interval": share_interval(right, of),
        "chance": chance_of(hits, len(scenes))["all"],
    }
    print(
        f"best of {first:2}  similarity {row['similarity']:.3f}  accuracy {row['accuracy']:.1%}",
        flush=True,
    )
    return row, (right, of)


def powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


if __name__ == "__main__":
    run(main, Config, __doc__)
