"""Do edits match their prompt? Skies repainted, evaluated by the probe.  [figure 7]

    python eval/edits.py --n 200 --out edits.json
    python eval/edits.py --n 100 --width 228 --out edits_wide.json    # pictures of 16:9

For each weather of `TARGETS`, the sky of held-out scenes (by their semantic map) is masked and
repainted by a prompt that names the weather. `found` is the share of edits for which the probe
predicts it (scenes that show it already are skipped), `exact` the share whose known pixels are
unchanged, `chance` the share found if the targets are shuffled among the edits. The probe sees a
wide picture squeezed to its square. `--candidates` draws several edits and keeps the one most
similar to the prompt. Edits are kept as they come: run again, it goes on.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from predictions import as_columns, chance_of, columns_of, from_rows, hits_of
from records import Run, image_digest, sha256_of_images
from reporting import run
from rows import ImageRows
from tqdm import tqdm
from uncertainty import share_interval

from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.data.scenery.words import PHRASES
from imagebart.data.scenery.world import AURORA, CLOUD, LIGHT, RAINBOW, SKY, STAR
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, MaskOptions, as_dataclass, options_given
from imagebart.probe import SHIPPED_PROBE, Probe

SCENES = 3000
"""Held-out scenes that are searched."""

IN_THE_SKY = (SKY, CLOUD, LIGHT, STAR, AURORA, RAINBOW)


class Target(NamedTuple):
    """A weather, its words in the prompt, and the times of day at which it is possible."""

    weather: str
    words: str
    times: tuple[str, ...]


TARGETS = (
    Target("aurora", "under northern lights", ("night",)),
    Target("rainbow", "under a rainbow", ("dawn", "noon", "sunset")),
    Target("clear", "under a clear sky", ("dawn", "noon", "sunset", "dusk")),
    Target("cloudy", "under scattered clouds", ("dawn", "noon", "sunset", "dusk")),
    Target("overcast", "under an overcast sky", ("dawn", "noon", "sunset", "dusk")),
)


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(MaskOptions, without=Conditions.__annotations__)):
    model: str = str(SHIPPED)  # a folder or a Hub id
    n: int = 200  # edits, shared by the targets
    width: int | None = None  # of the scenes, in pixels; the model's unless given
    candidates: int = 1  # drawn for each edit
    probe: Path | None = None  # the shipped one unless given
    seed: int = 0  # of edit 0; edit i has seed + i, its candidates every n-th seed after that
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < len(TARGETS):
        raise ValueError(f"n must be at least {len(TARGETS)}, one per target, got {config.n}")
    device, n = pick_device(config.device), config.n // len(TARGETS)
    measured = Run(config, [config.model, config.probe or SHIPPED_PROBE])
    model = ImageBART.from_pretrained(config.model, device=device)
    if "text" not in model.conditions:
        raise ValueError(f"model must take text, got one that takes {[*model.conditions]}")
    probe = Probe(config.probe).to(device)
    columns = columns_of(probe) | {"exact": ("?", 1), "sha256": ("u1", 32), "seconds": ("f4", 1)}
    kept = measured.rows("edits", n * len(TARGETS), columns)
    for k in range(len(TARGETS)):
        edit_skies(k, n, model, probe, config, kept)
    targets = np.repeat([target.weather for target in TARGETS], n)
    predictions = from_rows(kept)

    def hits_in(order: np.ndarray):
        return hits_of(predictions, [{"weather": weather} for weather in targets[order]])

    found, _ = hits_in(np.arange(len(targets)))["weather"]
    rows = []
    for k, target in enumerate(TARGETS):
        own = slice(k * n, (k + 1) * n)
        row = {
            "target": target.words,
            "edits": n,
            "found": float(found[own].mean()),
            "found_interval": share_interval(found[own]),
            "exact": float(kept["exact"][own].mean()),
        }
        rows.append(row)
        print(f"{target.words:24} found in {row['found']:.0%} of {n}", flush=True)
    report = {
        "found": float(found.mean()),
        "found_interval": share_interval(found),
        "chance": chance_of(hits_in, len(targets))["weather"],
        "rows": rows,
        "seconds": float(kept["seconds"].sum()),
    }
    print(f"{'all':24} found in {report['found']:.0%}, by chance in {report['chance']:.0%}")
    digests = (row.tobytes() for row in kept["sha256"])
    return report | measured.record(
        device,
        data=sha256_of_images(digests),
        n=len(targets),
        seeds=(config.seed, config.seed + config.candidates * len(targets) - 1),
        guidance=model.guidance if config.guidance is None else config.guidance,
    )


def edit_skies(
    k: int, n: int, model: ImageBART, probe: Probe, config: Config, kept: ImageRows
) -> None:
    """The n edits of target k, those that are missing."""
    target, missing = TARGETS[k], {row for (row,) in kept.missing(range(k * n, (k + 1) * n))}
    own = range(k, SCENES, len(TARGETS))  # no two targets have a scene in common
    height, width = model.image_size
    found = suitable(target, own, probe, (height, config.width or width))
    scenes = itertools.islice(found, n if missing else 0)
    for i, scene in enumerate(tqdm(scenes, desc=target.weather, total=n, mininterval=5)):
        if k * n + i not in missing:
            continue
        began = time.perf_counter()
        before, mask = Image.fromarray(scene.image), sky_of(scene)
        seeds = [config.seed + k * n + i + j * kept.n for j in range(config.candidates)]
        after = edited(model, probe, before, mask, prompt_of(scene, target), seeds, config)
        known = ~mask
        kept.put(
            [k * n + i],
            **as_columns(probe.predict([squeezed(after)])),
            exact=[np.array_equal(np.asarray(after)[known], scene.image[known])],
            sha256=np.frombuffer(image_digest(scene.image), np.uint8),
            seconds=[time.perf_counter() - began],
        )


def suitable(
    target: Target, among: range, probe: Probe, size: tuple[int, int]
) -> Iterator[scenery.Scene]:
    """Scenes among these at a fitting time of day for which the probe predicts another weather."""
    for i in among:
        scene = scenery.render(scenery.scene_seed("test", i), *size)
        attributes = scene.attributes
        if attributes["time"] in target.times and attributes["weather"] not in (
            target.weather,
            "fog",
        ):
            seen = squeezed(Image.fromarray(scene.image))
            (predicted,) = probe.predict([seen]).values("weather")
            if predicted != target.weather:
                yield scene
    raise ValueError(
        f"scenes that do not show {target.weather} yet must be found among {len(among)}, "
        "got too few"
    )


def squeezed(image: Image.Image) -> Image.Image:
    """The image as a square, of which the probe sees all."""
    return image.resize((image.height, image.height))


def sky_of(scene: scenery.Scene) -> np.ndarray:
    """The mask (H, W) of the sky and what is in it."""
    return np.isin(scene.semantic_map, IN_THE_SKY)


def prompt_of(scene: scenery.Scene, target: Target) -> str:
    """The scene's place and time under the target's weather."""
    noun, _ = PHRASES[scene.kind]
    return f"{noun} at {scene.attributes['time']} {target.words}"


def edited(
    model: ImageBART,
    probe: Probe,
    image: Image.Image,
    mask: np.ndarray,
    prompt: str,
    seeds: list[int],
    config: Config,
) -> Image.Image:
    """The edit; of several candidates the one most similar to the prompt."""
    how = options_given(config, MaskOptions)
    if "passes" in how:
        how.setdefault("process", "refined")
    images = model.inpaint(image, mask, len(seeds), **how | {"prompt": prompt, "seed": seeds})
    likeness = probe.likeness(prompt)(images) if len(images) > 1 else [0.0]
    return images[int(np.argmax(likeness))]


if __name__ == "__main__":
    run(main, Config, __doc__)
