"""Do edits match their prompt? Skies repainted, evaluated by the probe.  [figure 7]

    python eval/edits.py --n 200 --out edits.json

For each weather of `TARGETS`, the sky of held-out scenes (by their semantic map) is masked and
repainted by a prompt that names the weather. `found` is the share of edits for which the probe
predicts it (scenes that show it already are skipped), `exact` the share whose known pixels are
unchanged. `--candidates` draws several edits and keeps the one most similar to the prompt.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from records import options_of, run_record
from reporting import run
from tqdm import tqdm

from imagebart import ImageBART
from imagebart.data import scenery
from imagebart.data.scenery.words import PHRASES
from imagebart.data.scenery.world import AURORA, CLOUD, LIGHT, RAINBOW, SKY, STAR
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, EditingOptions, as_dataclass, options_given
from imagebart.probe import Probe

SCENES = 3000
"""Held-out scenes searched for each target."""

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
class Config(as_dataclass(EditingOptions, without=Conditions.__annotations__)):
    model: str = str(SHIPPED)  # a folder or a Hub id
    n: int = 200  # edits, shared by the targets
    candidates: int = 1  # drawn for each edit
    probe: Path | None = None  # the shipped one unless given
    seed: int = 0  # of every edit
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < len(TARGETS):
        raise ValueError(f"n must be at least {len(TARGETS)}, one per target, got {config.n}")
    device = pick_device(config.device)
    model = ImageBART.from_pretrained(config.model, device=device)
    probe, began, rows = Probe(config.probe).to(device), time.perf_counter(), []
    for target in TARGETS:
        found, exact, count = 0, 0, config.n // len(TARGETS)
        scenes = itertools.islice(suitable(target, probe, model.image_size), count)
        for scene in tqdm(scenes, desc=target.weather, total=count, mininterval=5):
            before, mask = Image.fromarray(scene.image), sky_of(scene)
            after = edited(model, probe, before, mask, prompt_of(scene, target), config)
            found += probe.predict([after]).values("weather") == [target.weather]
            kept = ~mask
            exact += np.array_equal(np.asarray(after)[kept], scene.image[kept])
        row = {
            "target": target.words,
            "edits": count,
            "found": found / count,
            "exact": exact / count,
        }
        rows.append(row)
        print(f"{target.words:24} found in {row['found']:.0%} of {count}", flush=True)
    report = {"found": float(np.mean([row["found"] for row in rows])), "rows": rows}
    print(f"{'all':24} found in {report['found']:.0%}")
    cost = {"seconds": time.perf_counter() - began}
    return report | {
        "options": options_of(config),
        "probe": probe.sha256,
        **cost,
        **run_record(device),
    }


def suitable(target: Target, probe: Probe, size: tuple[int, int]) -> Iterator[scenery.Scene]:
    """Held-out scenes at a fitting time of day for which the probe predicts another weather."""
    for i in range(SCENES):
        scene = scenery.render(scenery.scene_seed("test", i), *size)
        attributes = scene.attributes
        if attributes["time"] in target.times and attributes["weather"] not in (
            target.weather,
            "fog",
        ):
            (predicted,) = probe.predict([Image.fromarray(scene.image)]).values("weather")
            if predicted != target.weather:
                yield scene
    raise ValueError(
        f"scenes that do not show {target.weather} yet must be found among {SCENES}, got too few"
    )


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
    config: Config,
) -> Image.Image:
    """The edit; of several candidates the one most similar to the prompt."""
    how = options_given(config, EditingOptions)
    if "passes" in how:
        how.setdefault("process", "refined")
    images = model.inpaint(
        image,
        mask,
        config.candidates,
        prompt=prompt,
        **how,
    )
    likeness = probe.likeness(prompt)(images) if len(images) > 1 else [0.0]
    return images[int(np.argmax(likeness))]


if __name__ == "__main__":
    run(main, Config, __doc__)
