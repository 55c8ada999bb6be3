"""Do erased objects stay erased?  [section 4.3]

    python eval/erasing.py --n 100 --out erasing.json

Held-out scenes with an object (a balloon, birds, a boat …) that the probe finds. The object, with a
margin around it, is masked and repainted, nothing prompted. `gone` is the share of edits in which
the probe no longer finds the object, with its interval; `rows` has it for each kind of object.
`--picture` saves the first, each above its edit. Edits are kept as they come: a run that was
stopped goes on.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from records import Run, image_digest, sha256_of_images
from reporting import run
from tqdm import tqdm
from uncertainty import share_interval

from imagebart import ImageBART, show
from imagebart.arguments import as_int
from imagebart.data import scenery
from imagebart.data.scenery.words import THING_LABEL
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, MaskOptions, as_dataclass, options_given
from imagebart.probe import SHIPPED_PROBE, Probe

SEARCHED = 3000
"""Held-out scenes, at most."""
ON_PICTURE = 8


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(MaskOptions, without=Conditions.__annotations__)):
    model: str = str(SHIPPED)  # a folder or a Hub id
    n: int = 100  # scenes, each edited once
    margin: int = 4  # pixels around the object that are masked too
    probe: Path | None = None  # the shipped one unless given
    seed: int = 0  # of edit 0; edit i has seed + i
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where a picture of the first goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    as_int(config.margin, "margin")
    device = pick_device(config.device)
    measured = Run(config, [config.model, config.probe or SHIPPED_PROBE])
    model = ImageBART.from_pretrained(config.model, device=device)
    probe = Probe(config.probe).to(device)
    scenes = [*itertools.islice(with_objects(probe, model.image_size), config.n)]
    if len(scenes) < config.n:
        raise ValueError(f"n must be at most {len(scenes)}, the scenes found, got {config.n}")
    kept = measured.rows("erased", config.n, {"gone": ("?", 1), "seconds": ("f4", 1)})
    how, pictures = options_given(config, MaskOptions), []
    for i in tqdm(kept.left(ON_PICTURE if config.picture else 0), desc="erased", mininterval=5):
        image, began = Image.fromarray(scenes[i].image), time.perf_counter()
        mask = object_mask(scenes[i], config.margin)
        (edit,) = model.inpaint(image, mask, **how | {"seed": config.seed + i})
        seconds = time.perf_counter() - began
        (found,) = probe.predict([edit]).values("object")
        kept.put([i], gone=[found != scenes[i].attributes["object"]], seconds=[seconds])
        pictures = [*pictures, (image, edit)][:ON_PICTURE]
    if config.picture and pictures:
        above_and_below = [one for line in zip(*pictures, strict=True) for one in line]
        show.grid(above_and_below, columns=len(pictures)).save(config.picture)
    gone, kinds = kept["gone"][:, 0], np.array([one.attributes["object"] for one in scenes])
    rows = [
        {"object": kind, "edits": int(of.sum()), "gone": float(gone[of].mean())}
        for kind, of in ((kind, kinds == kind) for kind in sorted({*kinds.tolist()}))
    ]
    report = {"gone": float(gone.mean()), "gone_interval": share_interval(gone), "rows": rows}
    for row in rows:
        print(f"{row['object']:10} gone in {row['gone']:.0%} of {row['edits']}", flush=True)
    print(f"{'all':10} gone in {report['gone']:.0%}")
    seeds = config.seed, config.seed + config.n - 1
    digests = (image_digest(scene.image) for scene in scenes)
    record = measured.record(device, data=sha256_of_images(digests), n=config.n, seeds=seeds)
    return report | {"seconds": float(kept["seconds"].mean())} | record


def with_objects(probe: Probe, size: tuple[int, int]) -> Iterator[scenery.Scene]:
    """Held-out scenes with an object that the probe finds."""
    for i in range(SEARCHED):
        scene = scenery.render(scenery.scene_seed("test", i), *size)
        if "object" in scene.attributes:
            (found,) = probe.predict([Image.fromarray(scene.image)]).values("object")
            if found == scene.attributes["object"]:
                yield scene


def object_mask(scene: scenery.Scene, margin: int) -> np.ndarray:
    """The pixels (H, W) of the scene's object, and those within `margin` of it."""
    there = scene.semantic_map == THING_LABEL[scene.attributes["object"]]
    around = F.max_pool2d(torch.from_numpy(there)[None].float(), 2 * margin + 1, 1, margin)
    return around[0].numpy() > 0


if __name__ == "__main__":
    run(main, Config, __doc__)
