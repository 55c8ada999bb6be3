"""Do samples match their condition? Accuracy by the probe's predictions.

    python eval/obedience.py --conditions text class map --out obedience.json

text     held-out captions; share of their attributes (kind, time, weather, season, object) that
         the probe predicts for the sample
class    classes in turn; share of samples whose kind the probe predicts as the class
map      held-out semantic maps; share of the 16×16 places with the map's kind

The same is measured on the renders of the captions and maps (an upper limit: the probe's own
accuracy) and on samples against the condition of another sample (chance). Also the probe-FID:
Fréchet distance of the samples' probe features to those of as many renders of another split.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from metrics import feature_distance
from records import options_of, run_record
from reporting import run
from torch import Tensor
from tqdm import tqdm

from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.data.maps import commonest_kinds
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, SamplingOptions, as_dataclass, options_given
from imagebart.probe import GRID, Predictions, Probe

ConditionName = Literal["text", "class", "map"]


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(SamplingOptions, without=(*Conditions.__annotations__, "guidance"))):
    model: str = str(SHIPPED)  # a folder or a Hub id
    conditions: tuple[ConditionName, ...] = ("text", "class")
    n: int = 1000  # samples of each
    guidance: tuple[float, ...] = ()  # several to compare; the model's own unless given
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

    def options(self, condition: ConditionName, rows: range, model: ImageBART) -> dict:
        """Options of `model.sample` for these rows."""
        if condition == "text":
            return {"prompt": [self.scenes[i].caption for i in rows]}
        if condition == "class":
            return {"classes": [i % len(model.names["class"]) for i in rows]}
        return {"semantic_map": [self.scenes[i].semantic_map for i in rows]}

    @cached_property
    def pixels(self) -> Tensor:
        """The renders (n, 3, H, W), uint8."""
        return torch.from_numpy(np.stack([s.image for s in self.scenes])).permute(0, 3, 1, 2)

    def accuracy(
        self, condition: ConditionName, predictions: Predictions, model: ImageBART, shift: int = 0
    ) -> dict[str, float]:
        """Share of the condition that is predicted; `shift` 1 compares with the next scene's."""
        n = len(self.scenes)
        if condition == "map":
            kinds = np.stack([commonest_kinds(s.semantic_map, GRID) for s in self.scenes])
            kinds = torch.from_numpy(np.roll(kinds, -shift, axis=0))
            return {"places": (predictions.kinds == kinds).float().mean().item()}
        if condition == "class":
            names = model.names["class"]
            targets = [{"kind": names[(i + shift) % len(names)]} for i in range(n)]
        else:
            targets = [scenery.said(self.scenes[(i + shift) % n]) for i in range(n)]
        return predictions.accuracy(targets)


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    device = pick_device(config.device)
    model = ImageBART.from_pretrained(config.model, device=device)
    probe, targets = Probe(config.probe).to(device), Targets(config.n, model.image_size)
    renders = probe.predict(targets.pixels)
    reference = probe.predict(validation(config.n, model.image_size)).features
    rows = [
        {"condition": "render", "probe_fid": feature_distance(renders.features, reference)},
    ]
    print(f"renders: probe-FID {rows[0]['probe_fid']:.2f}", flush=True)
    for condition in config.conditions:
        for guidance in config.guidance or (model.guidance,):
            began = time.perf_counter()
            samples = draw_samples(model, targets, condition, guidance, config)
            predictions = probe.predict(samples)
            row = {
                "condition": condition,
                "guidance": guidance,
                "samples": targets.accuracy(condition, predictions, model),
                "chance": targets.accuracy(condition, predictions, model, shift=1),
                "probe_fid": feature_distance(predictions.features, reference),
                "seconds": time.perf_counter() - began,
            }
            if condition != "class":
                row["renders"] = targets.accuracy(condition, renders, model)
            rows.append(row)
            print(summary_line(row), flush=True)
    return {
        "rows": rows,
        "options": options_of(config),
        "probe": probe.sha256,
        **run_record(device),
    }


def draw_samples(
    model: ImageBART, targets: Targets, condition: ConditionName, guidance: float, config: Config
) -> Tensor:
    """One sample per scene, b×3×H×W uint8."""
    parts, how = [], options_given(config, SamplingOptions) | {"guidance": guidance}
    for start in tqdm(range(0, config.n, config.batch), desc=condition, mininterval=5):
        rows = range(start, min(start + config.batch, config.n))
        how |= {"seed": config.seed + start, **targets.options(condition, rows, model)}
        images = model.sample(len(rows), output_type="pt", **how)
        parts.append((images * 255).round().byte().cpu())
    return torch.cat(parts)


def validation(n: int, size: tuple[int, int]) -> Tensor:
    """Renders of another split."""
    seeds = [scenery.scene_seed("validation", i) for i in range(n)]
    images = [scenery.render(seed, *size).image for seed in seeds]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def summary_line(row: dict) -> str:
    parts = [f"{row['condition']}, guidance {row['guidance']:g}:"]
    for name in ("samples", "renders", "chance"):
        if name in row:
            each = ", ".join(f"{key} {value:.1%}" for key, value in row[name].items())
            parts.append(f"{name} {each};")
    return " ".join([*parts, f"probe-FID {row['probe_fid']:.2f}, {row['seconds']:.0f} s"])


if __name__ == "__main__":
    run(main, Config, __doc__)
