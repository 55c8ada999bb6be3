"""Blind test: can a viewer distinguish samples from renders?

    python eval/blind.py --picture sheet.png                 # shows the thumbnails
    python eval/blind.py --answers "RsS…" --out eval/results/scenery_blind.json
    python eval/blind.py --of reconstructions …              # of the VQGAN alone

Half of the thumbnails are held-out renders, half are samples (for the captions of other renders, if
the model takes text) or reconstructions of other renders, in an order given by the seed. A viewer
writes r (render) or s (model) for each, row by row, in capitals where certain. The JSON counts the
right and the certain answers.
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
    of: Literal["samples", "reconstructions"] = "samples"  # what is mixed with the renders
    n: int = 32  # thumbnails, half of them the model's
    seed: int = 0  # of the order, the samples and the renders
    picture: Path | None = None  # where the sheet goes
    answers: str = ""  # a letter for each thumbnail, row by row; spaces are ignored
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2 or config.n % 2:
        raise ValueError(f"n must be even and at least 2, got {config.n}")
    if config.picture:
        sheet(config).save(config.picture)
    if not config.answers:
        return {}
    scores = score(config.answers, order(config.n, config.seed))
    return scores | {"options": options_of(config), **run_record(pick_device(config.device))}


def order(n: int, seed: int) -> str:
    """The kind of each thumbnail: "r", a render, or "s", the model's."""
    letters = list("rs" * (n // 2))
    random.Random(seed).shuffle(letters)
    return "".join(letters)


def sheet(config: Config) -> show.Picture:
    """The thumbnails at twice their size."""
    model = ImageBART.from_pretrained(config.model, device=config.device)
    half, first = config.n // 2, config.seed * config.n
    scenes = [scenery.scene_seed("test", first + i) for i in range(config.n)]
    scenes = [scenery.render(seed, *model.image_size) for seed in scenes]
    renders = [Image.fromarray(scene.image) for scene in scenes]
    prompts = (
        {"prompt": [scene.caption for scene in scenes[half:]]} if "text" in model.conditions else {}
    )
    if config.of == "samples":
        made = model.sample(half, seed=first, **prompts)
    else:
        made = model.decode(model.encode(renders[half:]))
    of = {"r": iter(renders[:half]), "s": iter(made)}
    mixed = [next(of[letter]) for letter in order(config.n, config.seed)]
    return show.grid(mixed, columns=COLUMNS, height=2 * model.image_size[0])


def score(answers: str, truth: str) -> dict[str, int]:
    """Numbers of right answers, of certain ones and of those that are both."""
    answers = "".join(answers.split())
    if len(answers) != len(truth) or set(answers.lower()) - set("rs"):
        raise ValueError(f"answers must be {len(truth)} letters of r, s, R, S, got {answers!r}")
    right = [a.lower() == b for a, b in zip(answers, truth, strict=True)]
    sure = [letter.isupper() for letter in answers]
    both = sum(a and b for a, b in zip(right, sure, strict=True))
    return {"n": len(truth), "right": sum(right), "sure": sum(sure), "sure_and_right": both}


def summary(report: dict) -> str:
    counts = {name: value for name, value in report.items() if isinstance(value, int)}
    return str(counts or "see the picture")


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
