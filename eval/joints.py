"""Are the joints of an outpainting visible?  [section 4.3]

    python eval/joints.py --n 32 --out joints.json

Held-out scenes go on by half their size on every side. Along the frame of the original and along
every border of two windows, `step` is the mean |difference| of the two pixels that meet there, over
the median of the same between neighbours up to 8 pixels away on either side: 1 is invisible.
Reported are the mean, the median, the largest, and the share of at most 1.5, with 95 % intervals
over scenes. `--picture` saves the first.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from records import Run, image_digest, sha256_of_images
from reporting import run
from tqdm import tqdm
from uncertainty import mean_interval

from imagebart import ImageBART, show
from imagebart.data import scenery
from imagebart.distributed import pick_device
from imagebart.editing.pasting import outward
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, EditingOptions, as_dataclass, options_given

LIMIT = 1.5
NEARBY = 8
"""Pixels on either side whose steps a joint's is compared with."""
LARGEST_GRID = 8
"""Pictures that `--picture` shows at most."""


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(EditingOptions, without=Conditions.__annotations__)):
    model: str = str(SHIPPED)  # a folder or a Hub id
    n: int = 32  # held-out scenes
    seed: int = 0  # of scene 0; scene i has seed + i
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where a picture of the first goes
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    device = pick_device(config.device)
    measured = Run(config, [config.model])
    model, shown = ImageBART.from_pretrained(config.model, device=device), []
    (H, W), how = model.image_size, options_given(config, EditingOptions)
    margins = {"left": W // 2, "right": W // 2, "top": H // 2, "bottom": H // 2}
    windows = window_of_each(model.image_size, margins)
    frame = np.array([0 in pair for *_, pair in joints_of(windows)])
    columns = {"step": ("f8", len(frame)), "sha256": ("u1", 32), "seconds": ("f4", 1)}
    kept = measured.rows("outpaintings", config.n, columns)
    for i in tqdm(
        kept.left(LARGEST_GRID if config.picture else 0), desc="outpaintings", mininterval=5
    ):
        scene, began = (
            scenery.render(scenery.scene_seed("test", i), H, W).image,
            time.perf_counter(),
        )
        (grown,) = model.outpaint(
            Image.fromarray(scene), **margins, **how | {"seed": config.seed + i}
        )
        shown = [*shown, grown][:LARGEST_GRID]
        kept.put(
            [i],
            step=[steps_at(np.asarray(grown), windows)],
            sha256=np.frombuffer(image_digest(scene), np.uint8),
            seconds=[time.perf_counter() - began],
        )
    if config.picture and shown:
        show.grid(shown, columns=4, height=2 * H).save(config.picture)
    rows = [
        figures(name, kept["step"][:, of])
        for name, of in (("frame", frame), ("windows", ~frame), ("all", frame | ~frame))
    ]
    for row in rows:
        print(
            f"{row['joints']:8} step {row['step']:.2f} (median {row['median']:.2f}, largest "
            f"{row['largest']:.2f})  at most {LIMIT}: {row['share_invisible']:.0%}"
        )
    digests = (row.tobytes() for row in kept["sha256"])
    seeds = config.seed, config.seed + config.n - 1
    record = measured.record(device, data=sha256_of_images(digests), n=config.n, seeds=seeds)
    return {"rows": rows, "seconds": float(kept["seconds"].mean())} | record


def window_of_each(size: tuple[int, int], margins: dict[str, int]) -> np.ndarray:
    """The window (H, W) that paints each pixel, from 1; 0 is the original, of the model's size."""
    (h, w), top, left = size, margins["top"], margins["left"]
    known = np.zeros((h + top + margins["bottom"], w + left + margins["right"]), bool)
    known[top : top + h, left : left + w] = True
    windows = np.zeros(known.shape, int)
    for i, box in enumerate(outward(known.copy(), size), 1):
        new = box.inside(known.shape) & ~known
        windows[new], known = i, known | new
    return windows


def joints_of(windows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, tuple[int, int]]]:
    """(axis, place, which of the lines across it, the two windows) of every straight joint, in
    order: axis 1 is between columns, 0 between rows."""
    for axis in (0, 1):
        lines = windows if axis else windows.T
        for place in np.flatnonzero((lines[:, 1:] != lines[:, :-1]).any(0)):
            sides = lines[:, place], lines[:, place + 1]
            pairs = {(int(a), int(b)) for a, b in zip(*sides, strict=True) if a != b}
            for a, b in sorted(pairs):
                yield axis, int(place), (sides[0] == a) & (sides[1] == b), (a, b)


def steps_at(pixels: np.ndarray, windows: np.ndarray) -> list[float]:
    """`step` of every joint of an image (H, W, 3)."""
    steps = [np.abs(np.diff(pixels.astype(float), axis=axis)).mean(2) for axis in (0, 1)]
    found = []
    for axis, place, across, _ in joints_of(windows):
        of_lines = (steps[1] if axis else steps[0].T)[across].mean(0)
        near = of_lines[max(place - NEARBY, 0) : place + NEARBY + 1]
        others = np.delete(near, place - max(place - NEARBY, 0))
        found.append(of_lines[place] / max(np.median(others), 1e-3))
    return found


def figures(name: str, steps: np.ndarray) -> dict:
    """The figures of some joints, (scenes, joints)."""
    return {
        "joints": name,
        "step": float(steps.mean()),
        "step_interval": mean_interval(steps.mean(1)),
        "median": float(np.median(steps)),
        "largest": float(steps.max()),
        "share_invisible": float((steps <= LIMIT).mean()),
        "share_invisible_interval": mean_interval((steps <= LIMIT).mean(1)),
    }


if __name__ == "__main__":
    run(main, Config, __doc__)
