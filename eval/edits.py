"""Do edits show what their prompt says? Skies repainted, looked at by the probe.  [figure 7]

    python eval/edits.py --n 200 --out edits.json

Held-out scenes in turn for each wish of `WISHES`: their sky (the places of the map that show sky
or what is in it, down to the horizon) becomes the hole, the prompt says another sky. Counted is how
often the probe finds what was asked for in the result (`found`; scenes that show it already are
passed over), and that nothing else changed (`exact`). `--candidates` draws several and keeps the
one that the probe likes best.
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
from imagebart.editing.inpainting import Edit
from imagebart.folders import SHIPPED
from imagebart.probe import Probe

SCENES = 3000
"""Held-out scenes that are looked through for each wish."""

IN_THE_SKY = (SKY, CLOUD, LIGHT, STAR, AURORA, RAINBOW)


class Wish(NamedTuple):
    """A sky, the words for it, and the times of day at which it makes sense."""

    weather: str
    words: str
    times: tuple[str, ...]


WISHES = (
    Wish("aurora", "under northern lights", ("night",)),
    Wish("rainbow", "under a rainbow", ("dawn", "noon", "sunset")),
    Wish("clear", "under a clear sky", ("dawn", "noon", "sunset", "dusk")),
    Wish("cloudy", "under scattered clouds", ("dawn", "noon", "sunset", "dusk")),
    Wish("overcast", "under an overcast sky", ("dawn", "noon", "sunset", "dusk")),
)


@dataclass(frozen=True)
class Config:
    model: str = str(SHIPPED)  # a folder or a Hub id
    n: int = 200  # edits, shared by the wishes
    candidates: int = 1  # drawn for each edit
    guidance: float | None = None  # the model's own unless given
    passes: int = 0  # of refinement
    probe: Path | None = None  # the shipped one unless given
    seed: int = 0  # of every edit
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < len(WISHES):
        raise ValueError(f"n must be at least {len(WISHES)}, one a wish, got {config.n}")
    device = pick_device(config.device)
    model = ImageBART.from_pretrained(config.model, device=device)
    probe, began, rows = Probe(config.probe).to(device), time.perf_counter(), []
    for wish in WISHES:
        found, exact, count = 0, 0, config.n // len(WISHES)
        scenes = itertools.islice(suitable(wish, probe, model.image_size), count)
        for scene in tqdm(scenes, desc=wish.weather, total=count, mininterval=5):
            before, hole = Image.fromarray(scene.image), sky_of(scene)
            after = edited(model, probe, before, hole, prompt_of(scene, wish), config)
            found += probe.look([after]).values("weather") == [wish.weather]
            kept = ~Edit(model, before, hole).inside.numpy()
            exact += np.array_equal(np.asarray(after)[kept], scene.image[kept])
        row = {"wish": wish.words, "edits": count, "found": found / count, "exact": exact / count}
        rows.append(row)
        print(f"{wish.words:24} found in {row['found']:.0%} of {count}", flush=True)
    report = {"found": float(np.mean([row["found"] for row in rows])), "rows": rows}
    print(f"{'all':24} found in {report['found']:.0%}")
    cost = {"seconds": time.perf_counter() - began}
    return report | {
        "options": options_of(config),
        "probe": probe.sha256,
        **cost,
        **run_record(device),
    }


def suitable(wish: Wish, probe: Probe, size: tuple[int, int]) -> Iterator[scenery.Scene]:
    """Held-out scenes at the wish's time of day in which the probe does not see it yet."""
    for i in range(SCENES):
        scene = scenery.render(scenery.scene_seed("test", i), *size)
        told = scene.attributes
        if told["time"] in wish.times and told["weather"] not in (wish.weather, "fog"):
            (seen,) = probe.look([Image.fromarray(scene.image)]).values("weather")
            if seen != wish.weather:
                yield scene
    raise ValueError(
        f"scenes that do not show {wish.weather} yet must be found among {SCENES}, got too few"
    )


def sky_of(scene: scenery.Scene) -> np.ndarray:
    """The hole (H, W): all that shows sky."""
    return np.isin(scene.semantic_map, IN_THE_SKY)


def prompt_of(scene: scenery.Scene, wish: Wish) -> str:
    """The place as it is, under another sky."""
    noun, _ = PHRASES[scene.kind]
    return f"{noun} at {scene.attributes['time']} {wish.words}"


def edited(
    model: ImageBART,
    probe: Probe,
    image: Image.Image,
    hole: np.ndarray,
    prompt: str,
    config: Config,
) -> Image.Image:
    """The edit; of several the one most like the prompt."""
    how = {"process": "refined", "passes": config.passes} if config.passes else {}
    images = model.inpaint(
        image,
        hole,
        config.candidates,
        prompt=prompt,
        guidance=config.guidance,
        seed=config.seed,
        **how,
    )
    likeness = probe.likeness(prompt)(images) if len(images) > 1 else [0.0]
    return images[int(np.argmax(likeness))]


if __name__ == "__main__":
    run(main, Config, __doc__)
