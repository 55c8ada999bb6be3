"""Do samples match their condition? Accuracy by the probe's predictions.

    python eval/obedience.py --conditions text class map --out obedience.json

text     held-out captions; share of their attributes (kind, time, weather, season, object) that
         the probe predicts for the sample
class    classes in turn; share of samples whose kind the probe predicts as the class
map      held-out semantic maps; share of the 16×16 places with the map's kind

The same is measured on the renders of the captions and maps (an upper limit: the probe's own
accuracy) and with the conditions shuffled among the samples (chance). Also the probe-FID: Fréchet
distance of the samples' probe features to those of as many renders of another split. Intervals are
of 95 % over images. With several `--guidance`, each is compared with the first, over the same
conditions and seeds. Samples are kept as they come: run again, it goes on.
"""

import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from predictions import (
    Hits,
    as_columns,
    chance_of,
    columns_of,
    found_of,
    from_rows,
    hits_of,
    right_shares,
    share_intervals,
)
from records import Run, image_digest, sha256_of_images
from reporting import run
from rows import ImageRows
from torch import Tensor
from tqdm import tqdm
from uncertainty import (
    distance_difference,
    distance_interval,
    feature_distance,
    share_difference,
)

from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.data.maps import commonest_kinds
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, SamplingOptions, as_dataclass, options_given
from imagebart.probe import GRID, SHIPPED_PROBE, Predictions, Probe

ConditionName = Literal["text", "class", "map"]


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(SamplingOptions, without=(*Conditions.__annotations__, "guidance"))):
    model: str = str(SHIPPED)  # a folder or a Hub id
    conditions: tuple[ConditionName, ...] = ("text", "class")
    n: int = 1000  # samples of each
    guidance: tuple[str, ...] = ()  # several to compare, a number or one for each of t = 2 .. T
    # as 8,4,4,4; the model's own unless given
    probe: Path | None = None  # the shipped one unless given
    batch: int = 8
    seed: int = 0  # of sample 0
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


class Targets:
    """`n` held-out scenes whose captions, classes and maps are the conditions of the samples."""

    def __init__(self, n: int, size: tuple[int, int]):
        seeds = [scenery.scene_seed("test", i) for i in range(n)]
        self.scenes = [scenery.render(seed, *size) for seed in seeds]

    def options(self, condition: ConditionName, rows: list[int], model: ImageBART) -> dict:
        """Options of `model.sample` for these rows."""
        if condition == "text":
            return {"prompt": [self.scenes[i].caption for i in rows]}
        if condition == "class":
            return {"classes": [i % len(model.names["class"]) for i in rows]}
        return {"semantic_map": [self.scenes[i].semantic_map for i in rows]}

    @cached_property
    def places(self) -> np.ndarray:
        """The commonest kind at each of the probe's places, (n, 16, 16)."""
        return np.stack([commonest_kinds(s.semantic_map, GRID) for s in self.scenes])

    @property
    def pixels(self) -> Tensor:
        """The renders (n, 3, H, W), uint8."""
        return torch.from_numpy(np.stack([s.image for s in self.scenes])).permute(0, 3, 1, 2)

    def hits(
        self,
        condition: ConditionName,
        predictions: Predictions,
        model: ImageBART,
        order: np.ndarray | None = None,
    ) -> Hits:
        """What of the condition is predicted; with an `order`, of the conditions in that order."""
        n = len(self.scenes)
        order = np.arange(n) if order is None else order
        if condition == "map":
            right = (predictions.kinds.numpy() == self.places[order]).sum((1, 2)).astype(float)
            return {"places": (right, np.full(n, float(GRID[0] * GRID[1])))}
        if condition == "class":
            names = model.names["class"]
            return hits_of(predictions, [{"kind": names[i % len(names)]} for i in order])
        return hits_of(predictions, [scenery.said(self.scenes[i]) for i in order])


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    device = pick_device(config.device)
    measured = Run(config, [config.model, config.probe or SHIPPED_PROBE])
    model = ImageBART.from_pretrained(config.model, device=device)
    absent = {*config.conditions} - {*model.conditions}
    if absent:
        raise ValueError(f"conditions must be the model's {[*model.conditions]}, got {absent}")
    probe, targets = Probe(config.probe).to(device), Targets(config.n, model.image_size)
    renders = probe.predict(targets.pixels)
    reference = probe.predict(validation(config.n, model.image_size)).features
    rows = [{"condition": "render", **distance(renders.features, reference)}]
    print(f"renders: probe-FID {rows[0]['probe_fid']:.2f}", flush=True)
    for condition in config.conditions:
        first = None
        for guidance in guidance_compared(config, model):
            name = f"{condition}-{guidance}"
            kept = measured.rows(name, config.n, columns_of(probe) | {"seconds": ("f4", 1)})
            draw_samples(model, probe, targets, condition, guidance, config, kept)
            predictions = from_rows(kept)
            hits = targets.hits(condition, predictions, model)
            row = {
                "condition": condition,
                "guidance": guidance,
                "samples": right_shares(hits),
                "samples_interval": share_intervals(hits),
                "chance": chance_of(partial(targets.hits, condition, predictions, model), config.n),
                **distance(predictions.features, reference),
                "seconds": float(kept["seconds"].sum()),
            }
            if condition == "text":
                said = [scenery.said(scene) for scene in targets.scenes]
                row["objects"] = found_of(predictions, said, "object")
                row["objects_of_renders"] = found_of(renders, said, "object")
            if condition != "class":
                of_renders = targets.hits(condition, renders, model)
                row["renders"] = right_shares(of_renders)
                row["renders_interval"] = share_intervals(of_renders)
            if first is not None:
                row["against_first"] = against_first((hits, predictions), first, reference)
            first = first or (hits, predictions)
            rows.append(row)
            print(summary_line(row), flush=True)
    record = measured.record(
        device,
        data=sha256_of_images(image_digest(scene.image) for scene in targets.scenes),
        n=config.n,
        seeds=(config.seed, config.seed + config.n - 1),
        guidance=guidance_compared(config, model),
    )
    return {"rows": rows, **record}


def distance(features: Tensor, reference: Tensor) -> dict:
    return {
        "probe_fid": feature_distance(features, reference),
        "probe_fid_interval": distance_interval(features, reference),
    }


def against_first(
    ours: tuple[Hits, Predictions], first: tuple[Hits, Predictions], reference: Tensor
) -> dict:
    """The differences from the first guidance, over the same conditions and seeds."""
    (hits, predictions), (hits_1, predictions_1) = ours, first
    name = next(iter(hits))
    (right, of), (right_1, _) = hits[name], hits_1[name]
    distances = predictions.features, predictions_1.features, reference
    return {
        name: share_difference(right, right_1, of),
        "probe_fid": distance_difference(*distances),
    }


def guidance_compared(config: Config, model: ImageBART) -> list[float | list[float]]:
    """Every guidance that is compared: a number, or one for each of t = 2 .. T."""
    try:
        given = [[float(x) for x in one.split(",")] for one in config.guidance]
    except ValueError:
        raise ValueError(
            f"guidance must be numbers, as 4 or 8,4,4,4, got {config.guidance}"
        ) from None
    return [one if len(one) > 1 else one[0] for one in given] or [model.guidance]


def draw_samples(
    model: ImageBART,
    probe: Probe,
    targets: Targets,
    condition: ConditionName,
    guidance: float | list[float],
    config: Config,
    kept: ImageRows,
) -> None:
    """The predictions of one sample per scene."""
    how = options_given(config, SamplingOptions) | {"guidance": guidance}
    batches = [*kept.missing(batch=config.batch)]
    for rows in tqdm(batches, desc=condition, mininterval=5):
        began = time.perf_counter()
        how |= {"seed": [config.seed + i for i in rows]}
        how |= targets.options(condition, rows, model)
        images = model.sample(len(rows), output_type="pt", **how)
        predictions = probe.predict((images * 255).round().byte().cpu())
        seconds = (time.perf_counter() - began) / len(rows)
        kept.put(rows, **as_columns(predictions), seconds=np.full(len(rows), seconds))


def validation(n: int, size: tuple[int, int]) -> Tensor:
    """Renders of another split."""
    seeds = [scenery.scene_seed("validation", i) for i in range(n)]
    images = [scenery.render(seed, *size).image for seed in seeds]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def summary_line(row: dict) -> str:
    parts = [f"{row['condition']}, guidance {row['guidance']}:"]
    for name in ("samples", "renders", "chance"):
        if name in row:
            each = ", ".join(f"{key} {value:.1%}" for key, value in row[name].items())
            parts.append(f"{name} {each};")
    return " ".join([*parts, f"probe-FID {row['probe_fid']:.2f}, {row['seconds']:.0f} s"])


if __name__ == "__main__":
    run(main, Config, __doc__)
