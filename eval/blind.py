"""Blind test: can a viewer distinguish samples from renders?

    python eval/blind.py --picture sheet.png                 # the thumbnails, and sheet.json
    python eval/blind.py --picture sheet.png --answers "RsS…" --out eval/results/scenery_blind.json
    python eval/blind.py --of reconstructions …              # of the VQGAN alone
    python eval/blind.py --of edits …                        # renders with a part repainted

Half of the thumbnails are held-out renders, half are samples (for the captions of other renders, if
the model takes text), reconstructions of other renders, or edits of them (`edited_renders`), in an
order given by the seed. A viewer
writes r (render) or s (model) for each, row by row, in capitals where certain. The JSON counts the
right and the certain answers, with the 95 % interval, and the right answers by chance: the same
answers to sheets in another order. What was measured is recorded where the sheet is drawn.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from completion import mask_of
from PIL import Image
from records import Run, image_digest, options_of, sha256_of_images
from reporting import run
from uncertainty import by_chance, share_interval

from imagebart import ImageBART, show
from imagebart.checkpoint import read_json, write_json
from imagebart.data import scenery
from imagebart.distributed import pick_device
from imagebart.folders import SHIPPED

COLUMNS = 8


@dataclass(frozen=True)
class Config:
    model: str = str(SHIPPED)
    of: Literal["samples", "reconstructions", "edits"] = "samples"  # what is mixed with the renders
    n: int = 32  # thumbnails, half of them the model's
    seed: int = 0  # of the order, the samples and the renders
    picture: Path | None = None  # where the sheet goes, or lies if there are answers
    answers: str = ""  # a letter for each thumbnail, row by row; spaces are ignored
    out: Path | None = None  # where the JSON goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2 or config.n % 2:
        raise ValueError(f"n must be even and at least 2, got {config.n}")
    if config.picture is None:
        raise ValueError("picture must be given, where the sheet goes or lies, got none")
    beside = config.picture.with_suffix(".json")
    if not config.answers:
        drawn, record = sheet(config)
        drawn.save(config.picture)
        write_json(record, beside)
        return {}
    scores = score(config.answers, order(config.n, config.seed))
    return scores | record_of_sheet(beside, config)


def record_of_sheet(path: Path, config: Config) -> dict:
    """The record of the sheet that was answered; ValueError unless it was drawn as it is scored."""
    if not path.exists():
        raise ValueError(
            f"{path} must lie beside the sheet, got none: draw it with --picture alone"
        )
    record, options = read_json(path), options_of(config)
    of_answers = {name: options[name] for name in ("answers", "picture", "out")}
    drawn = {name: record["options"].get(name) for name in options.keys() - of_answers}
    other = [name for name, value in drawn.items() if value != options[name]]
    if other:
        raise ValueError(f"{path} must be of this sheet, got another {', '.join(sorted(other))}")
    return record | {"options": record["options"] | of_answers}


def scenes_of(config: Config, size: tuple[int, int]) -> list[scenery.Scene]:
    """The held-out scenes of the sheet: half are shown, half are what the model's are made for."""
    first = config.seed * config.n
    seeds = [scenery.scene_seed("test", first + i) for i in range(config.n)]
    return [scenery.render(seed, *size) for seed in seeds]


def order(n: int, seed: int) -> str:
    """The kind of each thumbnail: "r", a render, or "s", the model's."""
    letters = list("rs" * (n // 2))
    random.Random(seed).shuffle(letters)
    return "".join(letters)


def sheet(config: Config) -> tuple[show.Picture, dict]:
    """(the thumbnails at twice their size, their record)."""
    device, measured = pick_device(config.device), Run(config, [config.model])
    model = ImageBART.from_pretrained(config.model, device=device)
    half, first = config.n // 2, config.seed * config.n
    scenes = scenes_of(config, model.image_size)
    renders = [Image.fromarray(scene.image) for scene in scenes]
    prompts = (
        {"prompt": [scene.caption for scene in scenes[half:]]} if "text" in model.conditions else {}
    )
    if config.of == "samples":
        made = model.sample(half, seed=first, **prompts)
    elif config.of == "reconstructions":
        made = model.decode(model.encode(renders[half:]))
    else:
        made = edited_renders(model, renders[half:], first)
    of = {"r": iter(renders[:half]), "s": iter(made)}
    mixed = [next(of[letter]) for letter in order(config.n, config.seed)]
    record = measured.record(
        device,
        data=sha256_of_images(image_digest(scene.image) for scene in scenes),
        n=config.n,
        seeds=(first, first + half - 1),
        guidance=model.guidance if config.of == "samples" else None,
    )
    return show.grid(mixed, columns=COLUMNS, height=2 * model.image_size[0]), record


def edited_renders(model: ImageBART, renders: list[Image.Image], seed: int) -> list[Image.Image]:
    """Each with a part repainted, nothing prompted: centre, upper half, right half in turns."""
    masks = [mask_of(family, model.image_size) for family in ("centre", "upper", "right")]
    made = []
    for i, image in enumerate(renders):
        made += model.inpaint(image, masks[i % len(masks)], seed=seed + i)
    return made


def score(answers: str, truth: str) -> dict:
    """Numbers of right answers, of certain ones and of those that are both; the share of right
    answers with its interval, and by chance."""
    answers = "".join(answers.split())
    if len(answers) != len(truth) or set(answers.lower()) - set("rs"):
        raise ValueError(f"answers must be {len(truth)} letters of r, s, R, S, got {answers!r}")
    right = [a.lower() == b for a, b in zip(answers, truth, strict=True)]
    sure = [letter.isupper() for letter in answers]
    both = sum(a and b for a, b in zip(right, sure, strict=True))
    letters, said = np.array([*truth]), np.array([*answers.lower()])
    chance = by_chance(lambda order: {"right": (said == letters[order]).mean()}, len(truth))
    return {
        "right": sum(right),
        "sure": sum(sure),
        "sure_and_right": both,
        "right_share": sum(right) / len(right),
        "right_interval": share_interval(np.array(right)),
        "right_by_chance": chance["right"],
    }


def summary(report: dict) -> str:
    counts = {name: value for name, value in report.items() if isinstance(value, int)}
    return str(counts or "see the picture")


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
