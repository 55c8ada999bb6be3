"""Counterfactual edits: what would it be at another time of day?  [section 3.3]

    python eval/counterfactuals.py --n 100 --out counterfactuals.json

Held-out scenes are reimagined at another time of day: their place and time are the words of the
picture, the same place at the other time the new ones. Scenery can be painted at any time of day,
so every edit has a true answer, a render of the same place at the other time.

    found    share of edits for which the probe predicts the new time of day; `chance` with the
             times shuffled among the edits; `kind` is the share whose kind of place is the scene's
    ground   share of the tokens without any sky that are still the picture's; of the true render
             beside it
    psnr     of the edit against the true render, in dB; of a sample of the same prompt and seed,
             which knows nothing of the picture, and of the picture's own reconstruction beside it
    same     share of pictures whose tokens all come back under their own words

`--strength` compares several. Edits are kept as they come: run again, it goes on. `--picture` saves
the first: the picture, its edits by strength, the true render.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from edits import sky_of
from PIL import Image
from predictions import as_columns, chance_of, columns_of, from_rows, hits_of
from records import Run, image_digest, sha256_of_images
from reporting import run
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import tqdm
from uncertainty import mean_difference, mean_interval, share_interval

from imagebart import ImageBART, show
from imagebart.data import scenery
from imagebart.data.images import to_tensor
from imagebart.data.scenery.scenes import paint, plan_of
from imagebart.data.scenery.words import PHRASES
from imagebart.distributed import pick_device
from imagebart.editing.reimagining import reimagine_steps
from imagebart.folders import SHIPPED
from imagebart.options import (
    Conditions,
    ReimaginingOptions,
    SamplingOptions,
    as_dataclass,
    options_given,
    rows,
)
from imagebart.probe import SHIPPED_PROBE, Probe

MOST_PICTURED = 8
AT_ANY_TIME = ("clear", "cloudy", "overcast", "fog")
"""Weathers that every time of day has."""
SOURCES = tuple(f"source_{name}" for name in Conditions.__annotations__)
OF_EACH = ("ground", "ground_of_render", "psnr", "psnr_of_sample", "psnr_of_picture", "same")
OF_EACH += ("seconds",)
"""What is measured of each edit."""


@dataclass(frozen=True, kw_only=True)
class Config(
    as_dataclass(ReimaginingOptions, without=(*Conditions.__annotations__, *SOURCES, "strength"))
):
    model: str = str(SHIPPED)  # a folder or a Hub id
    n: int = 100  # held-out scenes, each edited once
    strength: tuple[float, ...] = (1.0,)  # the parts of the scales that run again
    probe: Path | None = None  # the shipped one unless given
    seed: int = 0  # of edit 0; edit i has seed + i
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where a picture of the first edits goes
    device: str = "auto"


class Pair(NamedTuple):
    """A scene, the same place at another time of day, and what both are called."""

    image: Image.Image
    other: Image.Image
    ground: np.ndarray
    kind: str
    time: str
    prompt: str
    other_prompt: str


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    device = pick_device(config.device)
    measured = Run(config, [config.model, config.probe or SHIPPED_PROBE])
    model = ImageBART.from_pretrained(config.model, device=device)
    if "text" not in model.conditions:
        raise ValueError(f"model must take text, got one that takes {[*model.conditions]}")
    probe, pairs = Probe(config.probe).to(device), pairs_of(config.n, model)
    columns = columns_of(probe) | {name: ("f8", 1) for name in OF_EACH}
    each, shown = [], [[pair.image for pair in pairs[:MOST_PICTURED]]]
    for strength in config.strength:
        kept = measured.rows(f"strength {strength}", config.n, columns)
        for (i,) in tqdm([*kept.missing()], desc=f"strength {strength:g}", mininterval=5):
            how = options_given(config, ReimaginingOptions) | {"seed": config.seed + i}
            put_edit(i, pairs[i], how | {"strength": strength}, model, probe, kept)
        each.append(measured_row(strength, pairs, kept))
        print(line_of(each[-1]), flush=True)
        if config.picture:
            how = options_given(config, ReimaginingOptions) | {"strength": strength}
            first = enumerate(pairs[:MOST_PICTURED])
            edits = [edited_tokens(model, p, how | {"seed": config.seed + i}) for i, p in first]
            shown.append(model.decode(torch.cat(edits)))
    if config.picture:
        shown.append([pair.other for pair in pairs[:MOST_PICTURED]])
        pictures = [one for line in shown for one in line]
        show.grid(pictures, columns=len(shown[0])).save(config.picture)
    return {"rows": each} | measured.record(
        device,
        data=sha256_of_images(image_digest(np.asarray(pair.image)) for pair in pairs),
        n=config.n,
        seeds=(config.seed, config.seed + config.n - 1),
        guidance=model.guidance if config.guidance is None else config.guidance,
    )


def pairs_of(n: int, model: ImageBART) -> list[Pair]:
    """The first n held-out scenes of a weather in `AT_ANY_TIME`, with the other times in turn."""
    pairs, i = [], 0
    while len(pairs) < n:
        seed = scenery.scene_seed("test", i)
        scene, i = scenery.render(seed, *model.image_size), i + 1
        if scene.attributes["weather"] in AT_ANY_TIME:
            pairs.append(pair_of(seed, scene, len(pairs), model))
    return pairs


def pair_of(seed: int, scene: scenery.Scene, index: int, model: ImageBART) -> Pair:
    """The scene of a seed and its twin; the twin's plan differs in the time of day alone."""
    then, (noun, _) = scene.attributes["time"], PHRASES[scene.kind]
    others = [time for time in scenery.TIMES if time != then]
    new = others[index % len(others)]
    plan = replace(plan_of(np.random.Generator(np.random.PCG64(seed))), time=new)
    pixels = np.clip(paint(plan, *model.image_size).rgb, 0, 1) * 255 + 0.5
    (h, w), f = model.grid, model.vqgan.f
    below = ~sky_of(scene).reshape(h, f, w, f)
    return Pair(
        image=Image.fromarray(scene.image),
        other=Image.fromarray(pixels.astype(np.uint8)),
        ground=below.all((1, 3)),
        kind=scene.kind,
        time=new,
        prompt=f"{noun} at {then}",
        other_prompt=f"{noun} at {new}",
    )


def edited_tokens(model: ImageBART, pair: Pair, how: dict) -> torch.Tensor:
    """x_1 (1, h, w) of the edit."""
    words = {"prompt": pair.other_prompt, "source_prompt": pair.prompt}
    *_, last = reimagine_steps(model, model.encode(pair.image), **{**words, **how})
    return last.tokens


def put_edit(i: int, pair: Pair, how: dict, model: ImageBART, probe: Probe, kept) -> None:
    """Edit i and what is measured of it."""
    began = time.perf_counter()
    tokens = edited_tokens(model, pair, how)
    seconds = time.perf_counter() - began
    x_1, twin = model.encode(pair.image), model.encode(pair.other)
    same = edited_tokens(model, pair, how | {"prompt": pair.prompt})
    (edit,), (picture,) = model.decode(tokens), model.decode(x_1)
    of_sample = {name: how[name] for name in how if name in rows(SamplingOptions)}
    (sample,) = model.sample(1, **of_sample | {"prompt": pair.other_prompt})
    ground = torch.from_numpy(pair.ground).to(x_1.device)
    psnr = partial(psnr_of, target=pair.other)
    kept.put(
        [i],
        **as_columns(probe.predict([edit])),
        ground=[(tokens == x_1)[0][ground].float().mean().item()],
        ground_of_render=[(twin == x_1)[0][ground].float().mean().item()],
        psnr=[psnr(edit)],
        psnr_of_sample=[psnr(sample)],
        psnr_of_picture=[psnr(picture)],
        same=[torch.equal(same, x_1)],
        seconds=[seconds],
    )


def psnr_of(image: Image.Image, target: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    one, other = ((to_tensor(x) + 1) / 2 for x in (image, target))
    return peak_signal_noise_ratio(one, other, data_range=1.0).item()


def measured_row(strength: float, pairs: list[Pair], kept) -> dict:
    predictions, times = from_rows(kept), np.array([pair.time for pair in pairs])

    def hits_in(order: np.ndarray):
        return hits_of(predictions, [{"time": time} for time in times[order]])

    found, _ = hits_in(np.arange(len(pairs)))["time"]
    kinds = zip(predictions.values("kind"), pairs, strict=True)
    return {
        "strength": strength,
        "found": float(found.mean()),
        "found_interval": share_interval(found),
        "chance": chance_of(hits_in, len(pairs))["time"],
        "kind": float(np.mean([kind == pair.kind for kind, pair in kinds])),
        "ground_interval": mean_interval(given(kept["ground"])),
        "psnr_interval": mean_interval(kept["psnr"][:, 0]),
        "psnr_over_sample": mean_difference(kept["psnr"][:, 0], kept["psnr_of_sample"][:, 0]),
        **{name: float(given(kept[name]).mean()) for name in OF_EACH},
    }


def given(column: np.ndarray) -> np.ndarray:
    """A column without NaN: a scene may have no token of ground alone."""
    return column[np.isfinite(column)]


def line_of(row: dict) -> str:
    return (
        f"strength {row['strength']:.2f}  found {row['found']:.0%} (chance {row['chance']:.0%})  "
        f"kind {row['kind']:.0%}  ground kept {row['ground']:.0%} (render "
        f"{row['ground_of_render']:.0%})  PSNR {row['psnr']:.2f} (sample "
        f"{row['psnr_of_sample']:.2f}, picture {row['psnr_of_picture']:.2f})  "
        f"same {row['same']:.0%}  {row['seconds']:.2f} s"
    )


if __name__ == "__main__":
    run(main, Config, __doc__)
