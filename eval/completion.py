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
             predicts for the completion; also of the time of day alone; and by chance, with the
             attributes shuffled among the images
    spread   how many times of day it predicts, as a perplexity (the renders' beside it)
    probe    Fréchet distance of the probe's features, completions against the untouched images
    fid      the same by Inception (needs its weights on disk)
    effective  the effective sample size of the particles, where `--particles` draws them
    cost     decoder passes and seconds an image; the masked tokens beside them

`--filling` compares what the encoder sees under the mask: the surroundings, harmonic as the library
fills it or repeated from the nearest pixel, or the picture as it is, which no edit should see.
Intervals are of 95 % over images. Every row but the first of a mask is compared with that one, over
the same images (`against_first`): a difference whose interval holds 0 is within the noise.
Completions are kept as they come: run again, it goes on. `--picture` saves the first completions of
every row, one below the other.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from metrics import MIN_IMAGES
from networks import Inception
from PIL import Image
from predictions import (
    Hits,
    as_columns,
    chance_of,
    columns_of,
    from_rows,
    hits_of,
    right_shares,
    share_intervals,
)
from records import Run, image_digest, recorded, sha256_of_images
from reporting import run
from rows import ImageRows
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import tqdm
from uncertainty import (
    distance_difference,
    distance_interval,
    feature_distance,
    ratio_difference,
    ratio_interval,
    share_difference,
)

from imagebart import ImageBART, show
from imagebart.data import scenery
from imagebart.data.images import to_bytes, to_pil, to_tensor
from imagebart.distributed import pick_device
from imagebart.editing.inpainting import MaskedImage, process_of
from imagebart.editing.pasting import fill_unknown
from imagebart.editing.process import PROCESSES
from imagebart.folders import SHIPPED
from imagebart.options import Conditions, MaskOptions, as_dataclass, options_given
from imagebart.probe import ATTRIBUTES, SHIPPED_PROBE, Probe
from imagebart.sampling import decode_parallel

PICTURED = 8
MEASURED = ("known_exact", "known_psnr_of_vqgan", "hidden", "agreed", "border_step")
MEASURED += ("border_step_of_renders", "masked_tokens", "passes", "seconds", "effective")
"""What is measured of each image."""
FAMILIES = ("upper", "lower", "right", "centre", "blob10", "blob25", "blob50")
FILLINGS = ("harmonic", "nearest", "none")
Process = Literal[tuple(PROCESSES)]
LISTED = ("process", "resampling_passes", "particles")
"""Options of an edit of which several are compared."""
WIDTHS = ("context", "feather")
"""Options of how an edit is pasted, which is not measured here."""


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(MaskOptions, without=(*Conditions.__annotations__, *LISTED, *WIDTHS))):
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


def mask_of(family: str, size: tuple[int, int], index: int = 0) -> np.ndarray:
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
    given = options_given(config, MaskOptions)
    given = {name: value for name, value in given.items() if name not in (*LISTED, "seed")}
    return [
        given | {"process": process} | more
        for process in config.process
        for more in ([{}] if process == "annealed" else resampling)
    ]


def method_name(how: dict) -> str:
    """A method, as a caption of its row of the picture."""
    if how["process"] == "annealed":
        return "several passes at every scale"
    if "particles" in how:
        return f"one of {how['particles']} fillings"
    passes = how.get("resampling_passes")
    if passes is None:
        return "the default"
    return f"{passes} resampling passes" if passes else "every scale once"


def complete_images(
    model: ImageBART,
    probe: Probe,
    inception: Inception | None,
    how: dict,
    family: str,
    filling: str,
    config: Config,
    kept: ImageRows,
) -> list[Image.Image]:
    """Complete the images whose rows are missing, and those of the picture, which it returns."""
    pictured, left = [], kept.left(PICTURED if config.picture else 0)
    for i in tqdm(left, desc=f"{family}, {how}", mininterval=5, leave=False):
        render, mask = held_out(model, i), mask_of(family, model.image_size, i)
        edit, result, cost = completion_of(model, render, mask, filling, how, config.seed + i)
        exchanged = np.where(mask[..., None], held_out(model, i + 1), render)
        other, whole = edit_filled(model, exchanged, mask, filling), Image.fromarray(render)
        tokens = edit.x_1(), other.x_1(), model.encode(whole)
        row = cost | of_known_tokens(*tokens, ~edit.masked) | of_pixels(edit, result, tokens[2])
        seen = as_seen(to_tensor(result)[None], probe, inception)
        kept.put([i], measured=[[row[name] for name in MEASURED]], **seen)
        pictured += [result] if i < PICTURED else []
    return pictured


def held_out(model: ImageBART, i: int) -> np.ndarray:
    """Render i (H, W, 3) of those that are completed."""
    return scenery.render(scenery.scene_seed("validation", i), *model.image_size).image


def completion_of(
    model: ImageBART, render: np.ndarray, mask: np.ndarray, filling: str, how: dict, seed: int
) -> tuple[MaskedImage, Image.Image, dict]:
    """(the edit, its result, what it took)."""
    passes = show.Passes()
    options = {"method": partial(decode_parallel, on_pass=passes)} | how | {"seed": seed}
    steps, began = process_of(options), time.perf_counter()
    edit = edit_filled(model, render, mask, filling)
    drawn = list(steps(model, edit.x_1(), edit.masked, **options))
    (result,) = to_pil(edit.result(drawn[-1].tokens))
    seconds = time.perf_counter() - began
    sizes = [step.effective.item() for step in drawn if step.effective is not None]
    cost = {"masked_tokens": edit.masked.sum().item(), "passes": len(passes), "seconds": seconds}
    return edit, result, cost | {"effective": sizes[0] if sizes else np.nan}


def of_known_tokens(x_1: Tensor, other: Tensor, whole: Tensor, known: Tensor) -> dict:
    """Shares of the known tokens: `hidden`, which are others in the `other` edit; `agreed`, which
    are those of the whole picture."""
    return {
        "hidden": (other != x_1)[known].float().mean().item(),
        "agreed": (x_1 == whole)[known].float().mean().item(),
    }


def of_pixels(edit: MaskedImage, result: Image.Image, whole: Tensor) -> dict:
    """What stays of the known pixels, and of them through the VQGAN, by the tokens of the whole
    picture; the steps across the border."""
    x_0, back = edit.x.cpu(), to_tensor(result)[None]
    known = ~edit.marked.expand_as(x_0)
    coded = edit.model.generate(whole).cpu().clamp(-1, 1)
    through = peak_signal_noise_ratio(coded[known], x_0[known], data_range=2.0)
    return {
        "known_exact": (back == x_0)[known].float().mean().item(),
        "known_psnr_of_vqgan": through.item(),
        "border_step": border_step(back, ~known[:, :1]),
        "border_step_of_renders": border_step(x_0, ~known[:, :1]),
    }


def as_seen(image: Tensor, probe: Probe, inception: Inception | None) -> dict:
    """The columns of one image, (1, 3, H, W) in [-1, 1]: predictions, and Inception's features."""
    columns = as_columns(probe.predict(to_bytes(image)))
    if inception:
        columns["inception"] = inception(to_bytes(image).to(probe.model.device))["features"]
    return columns


@dataclass(frozen=True)
class Renders:
    """The untouched images: what is found in them, and what should be."""

    kept: ImageRows
    targets: list[dict[str, str]]
    digests: list[bytes]

    @classmethod
    def of(
        cls, model: ImageBART, probe: Probe, inception: Inception | None, kept: ImageRows
    ) -> "Renders":
        seeds = [scenery.scene_seed("validation", i) for i in range(kept.n)]
        scenes = [scenery.render(seed, *model.image_size) for seed in seeds]
        for (i,) in kept.missing():
            x_0 = to_tensor(Image.fromarray(scenes[i].image))[None]
            kept.put([i], **as_seen(x_0, probe, inception))
        targets = [
            {name: scene.attributes[name] for name in ATTRIBUTES.keys() & scene.attributes}
            for scene in scenes
        ]
        return cls(kept, targets, [image_digest(scene.image) for scene in scenes])

    def hits(self, kept: ImageRows, order: np.ndarray | None = None) -> Hits:
        """Which attributes are predicted; with an `order`, the attributes in that order."""
        order = range(kept.n) if order is None else order
        return hits_of(from_rows(kept), [self.targets[i] for i in order])


def figures_of(kept: ImageRows, renders: Renders) -> dict:
    """The figures of one row of the table: a method and a family of masks."""
    values = dict(zip(MEASURED, kept["measured"].T, strict=True))
    there = {name: each for name, each in values.items() if np.isfinite(each).any()}
    row = {name: float(np.nanmean(each)) for name, each in there.items()}
    row |= distances(kept, renders.kept)
    for name, one in (("found_in_renders", renders.kept), ("found", kept)):
        row[name] = two_of(right_shares(renders.hits(one)))
    for name, one in (("renders", renders.kept), ("completed", kept)):
        row[f"spread_{name}"] = perplexity(from_rows(one).values("time"))
    row["found_interval"] = two_of(share_intervals(renders.hits(kept)))
    row["found_by_chance"] = two_of(chance_of(partial(renders.hits, kept), kept.n))
    row["seam"] = row["border_step"] / row["border_step_of_renders"]
    row["seam_interval"] = ratio_interval(values["border_step"], values["border_step_of_renders"])
    return row


def two_of(figures: dict) -> dict:
    return {name: figures[name] for name in ("all", "time")}


def distances(kept: ImageRows, untouched: ImageRows) -> dict:
    """Fréchet distances to the untouched images, by the probe and by Inception if it saw them."""
    row = {}
    for name, column in (("probe_fid", "features"), ("fid", "inception")):
        if column in kept.table.dtype.names:
            pair = kept[column], untouched[column]
            row[name] = feature_distance(*pair)
            row[f"{name}_interval"] = distance_interval(*pair)
    return row


def compared(ours: ImageRows, first: ImageRows, renders: Renders) -> dict:
    """The differences from the first row of the same mask, over the same images."""
    pair = ours, first
    (right, of), (right_1, _) = (renders.hits(one)["time"] for one in pair)
    ours_step, first_step = (one["measured"][:, MEASURED.index("border_step")] for one in pair)
    step_of_renders = ours["measured"][:, MEASURED.index("border_step_of_renders")]
    features = (one["features"] for one in (*pair, renders.kept))
    return {
        "time": share_difference(right, right_1, of),
        "probe_fid": distance_difference(*features),
        "seam": ratio_difference(ours_step, first_step, step_of_renders),
    }


def perplexity(values: Sequence[str]) -> float:
    """exp of the entropy: how many values there are, counted by how often they come."""
    share = np.array(list(Counter(values).values())) / len(values)
    return float(np.exp(-(share * np.log(share)).sum()))


def main(config: Config) -> dict:
    if config.n < (MIN_IMAGES if config.fid else 2):
        raise ValueError(f"n must be at least {MIN_IMAGES if config.fid else 2}, got {config.n}")
    device = pick_device(config.device)
    measured = Run(config, [*config.model, config.probe or SHIPPED_PROBE])
    inception = Inception(config.inception).to(device) if config.fid else None
    measured.reads(inception=inception.sha256 if inception else None)
    probe = Probe(config.probe).to(device)
    columns = columns_of(probe) | (
        {"inception": Inception.columns["features"]} if inception else {}
    )
    models = {name: ImageBART.from_pretrained(name, device=device) for name in config.model}
    rows, pictures, captions, firsts = [], [], [], {}
    for source, model in models.items():
        renders = Renders.of(
            model, probe, inception, measured.rows(f"renders of {source}", config.n, columns)
        )
        ways = product(config.masks, config.filling, enumerate(inpaint_options(config)))
        for family, filling, (k, how) in ways:
            kept = measured.rows(
                f"{source} {family} {filling} {k}",
                config.n,
                columns | {"measured": ("f8", len(MEASURED))},
            )
            completed = complete_images(model, probe, inception, how, family, filling, config, kept)
            kind = {"T": model.T, "mask": family, "filling": filling}
            rows.append({"model": recorded(source)} | kind | how | figures_of(kept, renders))
            if family in firsts:
                rows[-1]["against_first"] = compared(kept, firsts[family], renders)
            firsts.setdefault(family, kept)
            pictures += completed
            several = [f"T = {model.T}"] * (len(models) > 1) + [family] * (len(config.masks) > 1)
            captions += [", ".join([*several, method_name(how)])]
            captions += [""] * (min(config.n, PICTURED) - 1)
            print(summary_line(rows[-1]), flush=True)
    if config.picture:
        show.grid(pictures, min(config.n, PICTURED), captions).save(config.picture)
    record = measured.record(
        device,
        data=sha256_of_images(renders.digests),
        n=config.n,
        seeds=(config.seed, config.seed + config.n - 1),
    )
    return {"rows": rows, "split": "validation", **record}


def summary_line(row: dict) -> str:
    fid = f"  FID {row['fid']:.1f}" if "fid" in row else ""
    if "against_first" in row:
        apart = [name for name, one in row["against_first"].items() if one["distinct"]]
        fid += f"  differs from the first row in {', '.join(apart) or 'nothing beyond the noise'}"
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
