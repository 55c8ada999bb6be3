"""Does the chain paint what it is told? Samples, looked at by the probe.

    python eval/obedience.py --told text class map --out obedience.json

text     held-out captions; the share of what they say (kind, time, weather, season, object) that
         the probe finds in the sample
class    one class after another; how often the probe names it
map      held-out semantic maps; the share of the 16×16 places that the probe gives the same kind

Beside each: the same of the renders that captions and maps belong to (what the probe itself gets
right), and of samples with the wishes of others (chance). Also the probe-FID of the samples: the
Fréchet distance of the probe's features to those of as many renders of another split.
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
from imagebart.probe import GRID, Probe, Seen

Told = Literal["text", "class", "map"]


@dataclass(frozen=True)
class Config:
    model: str = str(SHIPPED)  # a folder or a Hub id
    told: tuple[Told, ...] = ("text", "class")
    n: int = 1000  # samples of each
    guidance: tuple[float, ...] = ()  # several to compare; the model's own unless given
    probe: Path | None = None  # the shipped one unless given
    batch: int = 8
    seed: int = 0  # of sample 0
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


class Wishes:
    """`n` held-out scenes: what they show is what samples are asked for."""

    def __init__(self, n: int, size: tuple[int, int]):
        seeds = [scenery.scene_seed("test", i) for i in range(n)]
        self.scenes = [scenery.render(seed, *size) for seed in seeds]

    def of(self, told: Told, rows: range, model: ImageBART) -> dict:
        """Options of `model.sample` for these rows."""
        if told == "text":
            return {"prompt": [self.scenes[i].caption for i in rows]}
        if told == "class":
            return {"classes": [i % model.classes for i in rows]}
        return {"semantic_map": [self.scenes[i].semantic_map for i in rows]}

    @cached_property
    def pixels(self) -> Tensor:
        """The renders (n, 3, H, W), uint8."""
        return torch.from_numpy(np.stack([s.image for s in self.scenes])).permute(0, 3, 1, 2)

    def obeyed(self, told: Told, seen: Seen, model: ImageBART, shift: int = 0) -> dict[str, float]:
        """What was asked for and found; `shift` 1 compares with the wish of the next scene."""
        n = len(self.scenes)
        if told == "map":
            kinds = np.stack([commonest_kinds(s.semantic_map, GRID) for s in self.scenes])
            kinds = torch.from_numpy(np.roll(kinds, -shift, axis=0))
            return {"places": (seen.kinds == kinds).float().mean().item()}
        if told == "class":
            asked = [{"kind": model.class_names[(i + shift) % model.classes]} for i in range(n)]
        else:
            asked = [scenery.said(self.scenes[(i + shift) % n]) for i in range(n)]
        return seen.found(asked)


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    device = pick_device(config.device)
    model = ImageBART.from_pretrained(config.model, device=device)
    probe, wishes = Probe(config.probe).to(device), Wishes(config.n, model.image_size)
    renders = probe.look(wishes.pixels)
    reference = probe.look(validation(config.n, model.image_size)).features
    rows = [
        {"told": "render", "probe_fid": feature_distance(renders.features, reference)},
    ]
    print(f"renders: probe-FID {rows[0]['probe_fid']:.2f}", flush=True)
    for told in config.told:
        for guidance in config.guidance or (model.guidance,):
            began = time.perf_counter()
            samples = draw(model, wishes, told, guidance, config)
            seen = probe.look(samples)
            row = {
                "told": told,
                "guidance": guidance,
                "samples": wishes.obeyed(told, seen, model),
                "chance": wishes.obeyed(told, seen, model, shift=1),
                "probe_fid": feature_distance(seen.features, reference),
                "seconds": time.perf_counter() - began,
            }
            if told != "class":
                row["renders"] = wishes.obeyed(told, renders, model)
            rows.append(row)
            print(line_of(row), flush=True)
    return {
        "rows": rows,
        "options": options_of(config),
        "probe": probe.sha256,
        **run_record(device),
    }


def draw(model: ImageBART, wishes: Wishes, told: Told, guidance: float, config: Config) -> Tensor:
    """A sample for every wish, b×3×H×W uint8."""
    parts = []
    for start in tqdm(range(0, config.n, config.batch), desc=told, mininterval=5):
        rows = range(start, min(start + config.batch, config.n))
        how = {"seed": config.seed + start, "guidance": guidance, "output_type": "pt"}
        images = model.sample(len(rows), **how, **wishes.of(told, rows, model))
        parts.append((images * 255).round().byte().cpu())
    return torch.cat(parts)


def validation(n: int, size: tuple[int, int]) -> Tensor:
    """Renders that no wish came from."""
    seeds = [scenery.scene_seed("validation", i) for i in range(n)]
    images = [scenery.render(seed, *size).image for seed in seeds]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def line_of(row: dict) -> str:
    parts = [f"{row['told']}, guidance {row['guidance']:g}:"]
    for name in ("samples", "renders", "chance"):
        if name in row:
            each = ", ".join(f"{key} {value:.1%}" for key, value in row[name].items())
            parts.append(f"{name} {each};")
    return " ".join([*parts, f"probe-FID {row['probe_fid']:.2f}, {row['seconds']:.0f} s"])


if __name__ == "__main__":
    run(main, Config, __doc__)
