"""A blind look: samples and renders, mixed; can a viewer tell them apart?

    python eval/blind.py --picture sheet.png                 # look, and write a letter for each
    python eval/blind.py --answers "RsS…" --out eval/results/scenery_blind.json
    python eval/blind.py --of reconstructions …                  # what the VQGAN alone gives away

Half of the thumbnails are held-out renders, half are samples (for the captions of other renders, if
the model takes text) or, of other renders, what the VQGAN makes of them, in an order that the seed
decides and nobody is told. A viewer writes r (a render) or s (the model's), row after row, in
capitals where sure. The JSON says how many are told apart, and how often the viewer is sure.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from records import options_of, run_record
from reporting import run

from imagebart import ImageBART, show
from imagebart.data import scenery
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED

COLUMNS = 8


@dataclass(frozen=True)
class Config:
    model: str = str(SHIPPED)
    of: Literal["samples", "reconstructions"] = "samples"  # what stands among the renders
    n: int = 32  # thumbnails, half of them the model's
    seed: int = 0  # of their order; samples and renders are others for every seed
    picture: Path | None = None  # where the sheet goes
    answers: str = ""  # a letter for each thumbnail, row after row; spaces do not count
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2 or config.n % 2:
        raise ValueError(f"n must be even and at least 2, got {config.n}")
    if config.picture:
        sheet(config).save(config.picture)
    if not config.answers:
        return {}
    told = score(config.answers, order(config.n, config.seed))
    return told | {"options": options_of(config), **run_record(pick_device(config.device))}


def order(n: int, seed: int) -> str:
    """What each thumbnail is: "r", a render, or "s", the model's."""
    letters = list("rs" * (n // 2))
    random.Random(seed).shuffle(letters)
    return "".join(letters)


def sheet(config: Config) -> show.Picture:
    """The thumbnails, twice as large as they are."""
    model = ImageBART.from_pretrained(config.model, device=config.device)
    half, first = config.n // 2, config.seed * config.n
    scenes = [scenery.scene_seed("test", first + i) for i in range(config.n)]
    scenes = [scenery.render(seed, *model.image_size) for seed in scenes]
    renders = [Image.fromarray(scene.image) for scene in scenes]
    told = {"prompt": [scene.caption for scene in scenes[half:]]} if model.takes_text else {}
    if config.of == "samples":
        made = model.sample(half, seed=first, **told)
    else:
        made = model.decode(model.encode(renders[half:]))
    of = {"r": iter(renders[:half]), "s": iter(made)}
    mixed = [next(of[letter]) for letter in order(config.n, config.seed)]
    return show.grid(mixed, columns=COLUMNS, height=2 * model.image_size[0])


def score(answers: str, truth: str) -> dict[str, int]:
    """How many are told apart; how many the viewer is sure of; how many of those rightly."""
    answers = "".join(answers.split())
    if len(answers) != len(truth) or set(answers.lower()) - set("rs"):
        raise ValueError(f"answers must be {len(truth)} letters of r, s, R, S, got {answers!r}")
    right = [a.lower() == b for a, b in zip(answers, truth, strict=True)]
    sure = [letter.isupper() for letter in answers]
    both = sum(a and b for a, b in zip(right, sure, strict=True))
    return {"n": len(truth), "right": sum(right), "sure": sum(sure), "sure_and_right": both}


def line_of(report: dict) -> str:
    counts = {name: value for name, value in report.items() if isinstance(value, int)}
    return str(counts or "look at it")


if __name__ == "__main__":
    run(main, Config, __doc__, line_of)
