"""Inpainting quality on held-out scenery.   [table 3 right, section 4.3]

    python eval/completion.py --out completion.json
    python eval/completion.py --model runs/scenery runs/baseline --process single annealed --fid

For every model, process and family of masks, over the same images, masks and seeds:

    known    share of known pixels that are the input's, bit for bit, and the PSNR that the same
             pixels would have had through the VQGAN, had they not been kept
    hidden   share of the known tokens that change if the pixels under the mask are another scene's
    agreed   share of the known tokens that are those of the whole, unmasked picture
    seam     mean gradient across the mask's border over the renders' at the same place; 1 is
             invisible, more is an edge
    found    share of the scene's attributes (kind, time, weather, season, object) that the probe
             predicts for the completion; also of the time of day alone
    spread   how many times of day it predicts, as a perplexity (the renders' beside it)
    probe    Fréchet distance of the probe's features, completions against the untouched images
    fid      the same by Inception (needs its weights on disk)
    effective  the effective sample size of the particles, where `--particles` draws them
    cost     decoder passes and seconds an image; the masked tokens beside them

`--filling` compares what the encoder sees under the mask: the surroundings, harmonic as the library
fills it or repeated from the nearest pixel, or the picture as it is, which no edit should see.
`--picture` saves the first completions of every row, one below the other.
"""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from metrics import MIN_IMAGES, ImageMetrics, feature_distance
from PIL import Image
from records import options_of, recorded, run_record
from reporting import run
from torch import Tensor
from tqdm import tqdm

from imagebart import ImageBART, show
from imagebart.data import scenery
from imagebart.data.images import to_pil, to_tensor
from imagebart.distributed import Ranks, pick_device
from imagebart.editing.inpainting import MaskedImage, process_of
from imagebart.editing.pasting import fill_unknown
from imagebart.editing.process import PROCESSES
from imagebart.folders import SHIPPED
from imagebart.perceptual import psnr
from imagebart.probe import ATTRIBUTES, Probe
from imagebart.sampling import decode_parallel

PICTURED = 8
FAMILIES = ("upper", "lower", "right", "centre", "blob10", "blob25", "blob50")
FILLINGS = ("harmonic", "nearest", "none")
Process = Literal[tuple(PROCESSES)]


@dataclass(frozen=True)
class Config:
    model: tuple[str, ...] = (str(SHIPPED),)  # folders or Hub ids, side by side
    process: tuple[Process, ...] = tuple(PROCESSES)  # ways to sample masked tokens
    masks: tuple[Literal[FAMILIES], ...] = FAMILIES
    resampling_passes: tuple[int, ...] = ()  # at t = T - 1; 0: the paper's chain
    particles: tuple[int, ...] = ()  # at t = T, in place of resampling passes
    filling: tuple[Literal[FILLINGS], ...] = ("harmonic",)  # what is encoded under the mask
    n: int = 200  # held-out images, each completed once
    probe: Path | None = None  # the shipped one unless given
    fid: bool = False  # measure FID with Inception as well
    inception: Path | None = None  # the network's weights; default: where torch.hub keeps them
    seed: int = 0  # of completion 0; completion i has seed + i
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where a picture of the first completions goes
    device: str = "auto"


# ── masks ─────────────────────────────────────────────────────────────────────────────────────


def mask_of(family: str, size: tuple[int, int], index: int) -> np.ndarray:
    """The mask of image `index` as booleans (H, W), True = repaint.

    blobNN: smooth noise, where it is highest, over NN % of the image; every index has its own.
    """
    H, W = size
    mask = np.zeros(size, bool)
    if family == "upper":
        mask[: H // 2] = True
    elif family == "lower":
        mask[H // 2 :] = True
    elif family == "right":
        mask[:, W // 2 :] = True
    elif family == "centre":
        mask[H // 4 : H - H // 4, W // 4 : W - W // 4] = True
    else:
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randn(1, 1, 6, 6, generator=generator)
        noise = F.interpolate(coarse, size, mode="bicubic")[0, 0]
        part = int(family.removeprefix("blob")) / 100
        mask = (noise > noise.quantile(1 - part)).numpy()
    return mask


# ── what is measured ──────────────────────────────────────────────────────────────────────────


def edit_filled(
    model: ImageBART, pixels: np.ndarray, mask: np.ndarray, filling: str
) -> MaskedImage:
    """The edit of pixels (H, W, 3) of the model's size, whose crop is filled in this way."""
    edit = MaskedImage(model, Image.fromarray(pixels), mask)
    if filling != "harmonic":
        seen = fill_unknown(pixels, ~mask) if filling == "nearest" else pixels
        edit.x_0 = model.pixels(Image.fromarray(seen))
    return edit


def border_step(image: Tensor, mask: Tensor) -> float:
    """Mean |difference| of neighbouring pixels across the border of the mask.

    image (1, 3, H, W), mask (1, 1, H, W); NaN if nothing borders.
    """
    down = image.diff(dim=2).abs().mean(1)[mask.diff(dim=2)[:, 0]]
    right = image.diff(dim=3).abs().mean(1)[mask.diff(dim=3)[:, 0]]
    return torch.cat([down, right]).mean().item()


# ── the table ─────────────────────────────────────────────────────────────────────────────────


def inpaint_options(config: Config) -> list[dict]:
    """Options of `inpaint` for each method; the released process has none of them."""
    resampling: list[dict] = [{"resampling_passes": passes} for passes in config.resampling_passes]
    resampling += [{"particles": count} for count in config.particles]
    resampling = resampling or [{}]
    return [
        {"process": process} | more
        for process in config.process
        for more in ([{}] if process == "annealed" else resampling)
    ]


def measure_completion(
    model: ImageBART, probe: Probe, how: dict, family: str, filling: str, config: Config
) -> tuple[dict, list[Image.Image]]:
    """One row, a method and a family of masks; and its first completions."""
    (H, W), sums = model.image_size, {}
    seen: dict[str, list[Tensor]] = {"real": [], "completed": []}
    truths, pictured = [], []
    metrics = (
        ImageMetrics({"fid"}, Ranks(0, 1, model.device), config.inception) if config.fid else None
    )
    for i in tqdm(range(config.n), desc=f"{family}, {how}", mininterval=5, leave=False):
        scene = scenery.render(scenery.scene_seed("validation", i), H, W)
        render = scene.image
        truths.append(
            {name: scene.attributes[name] for name in ATTRIBUTES.keys() & scene.attributes}
        )
        x_0 = to_tensor(Image.fromarray(render))[None]
        mask = mask_of(family, (H, W), i)
        passes = show.Passes()
        options = how | {
            "seed": config.seed + i,
            "method": partial(decode_parallel, on_pass=passes),
        }
        steps, began = process_of(options), time.perf_counter()
        edit = edit_filled(model, render, mask, filling)
        x_1 = edit.x_1()
        *_, last = steps(model, x_1, edit.masked, **options)
        effective = None if last.effective is None else last.effective.item()
        (result,) = to_pil(edit.result(last.tokens))
        seconds, back = time.perf_counter() - began, to_tensor(result)[None]
        whole = model.encode(Image.fromarray(render))
        known, known_tokens = ~torch.from_numpy(mask).expand_as(x_0), ~edit.masked
        other = scenery.render(scenery.scene_seed("validation", i + 1), H, W).image
        exchanged = np.where(mask[..., None], other, render)
        hidden = edit_filled(model, exchanged, mask, filling).x_1() != x_1
        coded = model.generate(whole).cpu()
        row = {
            "known_exact": (back == x_0)[known].float().mean().item(),
            "known_psnr_of_vqgan": psnr(x_0, torch.where(known, coded, x_0)).item(),
            "hidden": hidden[known_tokens].float().mean().item(),
            "agreed": (x_1 == whole)[known_tokens].float().mean().item(),
            "border_step": border_step(back, ~known[:, :1]),
            "border_step_of_renders": border_step(x_0, ~known[:, :1]),
            "masked_tokens": edit.masked.sum().item(),
            "passes": len(passes),
            "seconds": seconds,
        } | ({} if effective is None else {"effective": effective})
        sums = {name: sums.get(name, 0.0) + value / config.n for name, value in row.items()}
        seen["real"].append(to_bytes(x_0))
        seen["completed"].append(to_bytes(back))
        pictured += [result] if i < PICTURED else []
        if metrics:
            metrics.update(to_bytes(x_0), real=True)
            metrics.update(to_bytes(back))
    predictions = [probe.predict(torch.cat(images)) for images in seen.values()]
    sums["probe_fid"] = feature_distance(*(one.features for one in predictions))
    for name, one in zip(("renders", "completed"), predictions, strict=True):
        found = "found_in_renders" if name == "renders" else "found"
        sums[found] = {key: one.accuracy(truths)[key] for key in ("all", "time")}
        sums[f"spread_{name}"] = perplexity(one.values("time"))
    sums["seam"] = sums["border_step"] / sums["border_step_of_renders"]
    if metrics:
        metrics.sync()
        sums |= {"fid": metrics.compute(config.seed)["fid"]}
    return sums, pictured


def perplexity(values: Sequence[str]) -> float:
    """exp of the entropy: how many values there are, counted by how often they come."""
    share = np.array(list(Counter(values).values())) / len(values)
    return float(np.exp(-(share * np.log(share)).sum()))


def to_bytes(image: Tensor) -> Tensor:
    """[-1, 1] as uint8."""
    return ((image + 1) * 127.5).round().clamp(0, 255).byte()


def main(config: Config) -> dict:
    if config.n < (MIN_IMAGES if config.fid else 1):
        raise ValueError(f"n must be at least {MIN_IMAGES if config.fid else 1}, got {config.n}")
    device = pick_device(config.device)
    rows, pictures, captions = [], [], []
    for source in config.model:
        model, probe = ImageBART.from_pretrained(source, device=device), Probe(config.probe)
        ways = itertools.product(config.masks, config.filling, inpaint_options(config))
        for family, filling, how in ways:
            row, completed = measure_completion(model, probe, how, family, filling, config)
            kind = {"T": model.T, "mask": family, "filling": filling}
            rows.append({"model": recorded(source)} | kind | how | row)
            pictures += completed
            caption = f"T = {model.T}, {family}, {how['process']}"
            captions += [caption, *[""] * (len(completed) - 1)]
            print(summary_line(rows[-1]), flush=True)
    if config.picture:
        show.grid(pictures, min(config.n, PICTURED), captions).save(config.picture)
    return {
        "rows": rows,
        "options": options_of(config),
        "split": "validation",
        **run_record(device),
    }


def summary_line(row: dict) -> str:
    fid = f"  {row['fid']['name']} {row['fid']['value']:.1f}" if "fid" in row else ""
    return (
        f"T={row['T']} {row['mask']:8} {row['filling']:8} {row['process']:9} resampling "
        f"{row.get('resampling_passes', '-')} particles {row.get('particles', '-')} "
        f"(effective {row.get('effective', 1):.1f})  "
        f"known {row['known_exact']:.0%} exact  hidden {row['hidden']:.0%}  "
        f"agreed {row['agreed']:.0%}  "
        f"seam {row['seam']:.2f}  {row['passes']:.0f} passes for {row['masked_tokens']:.0f} "
        f"tokens  {row['seconds']:.2f} s  true and found {row['found']['all']:.1%}, time "
        f"{row['found']['time']:.1%} (spread {row['spread_completed']:.2f} of "
        f"{row['spread_renders']:.2f})  probe-FID {row['probe_fid']:.2f}{fid}"
    )


if __name__ == "__main__":
    run(main, Config, __doc__)
