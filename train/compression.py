"""Train a VQGAN: x_0 ↔ x_1.   [section 3.2, eq. 3, 4]

    python train/compression.py --preset scenery --data scenery --out runs/scenery/vqgan
    torchrun --standalone --nproc-per-node gpu train/compression.py --preset ffhq-2 --data DIR …
    torchrun --nnodes 2 --nproc-per-node gpu --rdzv-backend c10d --rdzv-endpoint HOST:PORT train/…

The same command again resumes. `--init DIR` starts from a trained VQGAN instead, to fine-tune it;
with `--train decoder` its decoder alone, so that its tokens stay what they are. `--train known`
trains alone what fits an edit to its known pixels (imagebart/known_pixels.py), added where there is
none: images are masked at random, and repainted where they are.
OUT holds config.json and vqgan.safetensors (loadable at any time), best/ (the same, of the highest
PSNR on held-out images), metrics.jsonl, run.json, and reconstructions_*.png: images above,
reconstructions below. Of a folder without a folder `validation`, a share is held out.
"""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from adversarial import Adversaries, revival_is_due
from einops import rearrange
from memory import VQGAN_ADVICE, cost_of_compression, images_at_once
from repainting import Repainter, marks_of, seeing_known
from running import TrainingRun
from torch.utils.data import DataLoader
from torchmetrics.functional.image import peak_signal_noise_ratio
from training import (
    Log,
    errors_said,
    machine_of,
    must_stay,
    read_options,
    report,
    say,
)

from imagebart import distributed
from imagebart.checkpoint import (
    EMA,
    Checkpoints,
    atomic_write,
    read_json,
    remove_drafts,
    run_lock,
    write_json,
)
from imagebart.data.batches import Batches
from imagebart.data.image_folder import UNREADABLE
from imagebart.data.images import to_pil
from imagebart.data.sources import HELD_OUT, open_data, summary_of
from imagebart.folders import load_vqgan, save_vqgan
from imagebart.notation import Images
from imagebart.perceptual import sharpness
from imagebart.presets import CompressionRecipe, Preset, find_preset
from imagebart.vqgan import VQGAN


@dataclass(frozen=True)
class Config:
    out: Path  # folder of this run
    data: str = "scenery"  # "scenery", or a folder of images
    held_out: float = HELD_OUT  # share of a folder without splits that is not trained on
    unreadable: float = UNREADABLE  # share of the images that may be replaced by others
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    init: Path | None = None  # start from this trained VQGAN (its shape, its weights)
    train: Literal["all", "decoder", "known"] = "all"  # all else stays as --init's
    count: int | None = None  # images of the training split, instead of the preset's
    keep: Path | None = None  # folder where scenes are kept that were painted, for train/encode.py
    steps: int | None = None  # instead of the preset's; what begins later begins in proportion
    batch: int | None = None  # instead of the preset's, over all ranks
    learning_rate: float | None = None  # instead of the preset's
    perceptual: str | None = None  # instead of the preset's: "lpips", "imagenet" or "random"
    precision: str | None = None  # instead of the preset's: "fp32" or "bf16"
    seed: int = 0
    device: str = "auto"
    workers: int = 2  # processes that load images, a rank
    at_once: int | None = None  # images of a rank in one pass; as many as fit unless given
    tensorboard: bool = False  # the log for TensorBoard too, beside metrics.jsonl
    override: bool = False  # resume although data or options are others than until now
    timeout: float = 600  # seconds without a step after which a run of several ranks ends
    save_every: int = 250  # steps between checkpoints
    look_every: int = 250  # steps between pictures and validation


def main(config: Config, ranks: distributed.Ranks) -> None:
    # ── where we run ──────────────────────────────────────────────────────────────────────────
    preset = find_preset(config.preset)
    recipe = recipe_of(config, preset)
    part = distributed.share(recipe.batch, ranks)
    torch.manual_seed(config.seed)
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where a product is in fp32
    vqgan = vqgan_of(config, preset)
    share = recipe.batch // ranks.world
    precision = distributed.precision_on(ranks.device, recipe.precision)
    here = replace(recipe, precision=precision)
    cost = partial(cost_of_compression, vqgan.config, here, ranks.world)
    at_once, _ = images_at_once(config.at_once, recipe.batch, share, ranks, cost, VQGAN_ADVICE)

    # ── what we learn from ────────────────────────────────────────────────────────────────────
    size = preset.vqgan.image_size
    shares = dict(held_out=config.held_out, unreadable=config.unreadable)
    count = config.count or preset.train_images or None
    train = open_data(config.data, size, "train", count, **shares, keep=config.keep)
    held_out = open_data(config.data, size, "validation", 64, **shares)
    if ranks.is_main:
        say(f"{config.data}: {summary_of(train)}; validation on {summary_of(held_out)}")
    look_at = torch.stack([held_out[i]["image"] for i in range(min(64, len(held_out)))])

    def images_from(step: int) -> DataLoader:
        """The batches of this rank from a step on."""
        batches = Batches(len(train), recipe.batch, config.seed, step, recipe.steps, part)
        return DataLoader(train, batch_sampler=batches, num_workers=config.workers)

    # ── what we learn ─────────────────────────────────────────────────────────────────────────
    by_known, tokens_held = config.train == "known", config.train != "all"
    both = Adversaries(vqgan, recipe, ranks, by_known, at_once)

    # ── where we left off ─────────────────────────────────────────────────────────────────────
    data = distributed.same_on_all(train.digest, "the training images", ranks)
    kept = must_stay(config, recipe, perceptual=recipe.perceptual, train=config.train, data=data)
    machine = machine_of(ranks, recipe.precision, at_once)
    if ranks.is_main:
        remove_drafts(config.out)
        remove_drafts(config.out / "checkpoints")
    checkpoints, saved = Checkpoints(config.out / "checkpoints"), copy.deepcopy(vqgan).cpu()

    def publish(state: dict) -> None:
        saved.load_state_dict(state["ema"]["average"])
        save_vqgan(saved, config.out)

    saves = checkpoints, both.parts(), both.learned(), kept, machine, publish
    run = TrainingRun(config, recipe, ranks, config.out, *saves)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────
    with run:
        images = Following(images_from)
        for step in run.steps():
            image = distributed.sent(images.at(step), ranks.device)
            image = image.to(memory_format=torch.channels_last)
            quantised = tokens_held or step >= recipe.quantise_start
            how: bool | torch.Tensor = quantised
            if by_known:
                how = marks_of(range(recipe.batch)[part], image, config.seed, step)
            if not tokens_held and revival_is_due(step, recipe, new=config.init is None):
                both.revive(image, config.seed, step)
            measured, finite = both.learn(image, how, step, quantised)
            run.skips.note(finite)

            done = step + 1
            if run.is_reported(done):
                numbers = {name: distributed.mean(x, ranks) for name, x in measured.items()}
                real_fake = zip(("logit_real", "logit_fake"), both.judgements.averages, strict=True)
                numbers |= dict(real_fake, codes=both.usage.reported())
                run.report(done, {"rec": f"{measured['rec'].item():.3f}"}, **numbers)
            if run.is_looked_at(done) and ranks.is_main:
                same = averaged(vqgan, both.ema)
                of_look = marks_of(range(len(look_at)), look_at, 0, 0) if by_known else None
                of_all = look_at, quantised, of_look, both.features
                log_reconstructions(same, *of_all, done, run.log, ranks.device)
    if replaced := getattr(train, "unreadable_files", []):
        say(f"{len(replaced)} images could not be read and were replaced: {', '.join(replaced)}")


class Following:
    """Batches of images, of which those of the next step load meanwhile."""

    def __init__(self, images_from: Callable[[int], Iterable[dict]]):
        self.images_from = images_from
        self.next: int | None = None

    def at(self, step: int) -> Images:
        """The images of a step; begins anew if it does not follow the last one."""
        if step != self.next:
            self.images = iter(self.images_from(step))
        self.next = step + 1
        return next(self.images)["image"]


def recipe_of(config: Config, preset: Preset) -> CompressionRecipe:
    """The preset's recipe, but for what is given."""
    names = ("batch", "learning_rate", "perceptual", "precision")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return replace(preset.compression, **given).lasting(config.steps or preset.compression.steps)


def vqgan_of(config: Config, preset: Preset) -> VQGAN:
    """A new VQGAN, or that of `--init`, of which only what is to learn is not frozen.

    Where all learns, other codes come into use, so each has a token again; else tokens stay.
    """
    if config.train != "all" and not config.init:
        raise ValueError(f"--train {config.train} needs a trained VQGAN, --init, got none")
    vqgan = load_vqgan(config.init) if config.init else VQGAN(preset.vqgan)
    if config.train == "known":
        vqgan = seeing_known(vqgan)
        vqgan.hold_all_but_known()
        return vqgan
    vqgan.hold_known()
    if config.train == "decoder":
        vqgan.hold_tokens()
    else:
        vqgan.quantiser.expand()
    return vqgan


def averaged(vqgan: VQGAN, ema: EMA) -> VQGAN:
    """A copy of the VQGAN with the averaged weights."""
    same = copy.deepcopy(vqgan)
    ema.copy_to(same)
    return same


@torch.no_grad()
def log_reconstructions(
    vqgan: VQGAN, image, quantise: bool, marks, features, step: int, log: Log, device: torch.device
) -> None:
    """Reconstruct held-out images, or what is marked of them: numbers to the log, a picture to
    look at."""
    path = log.path.parent / f"reconstructions_{step:06d}.png"
    learner = vqgan if marks is None else Repainter(vqgan)
    each = [quantise] * len(image) if marks is None else marks.split(1)
    with report(str(path)):
        pairs = zip(image.split(1), each, strict=True)
        back = torch.cat([learner(x.to(device), how)[0].cpu() for x, how in pairs])
        sharp = sharpness(back.clamp(-1, 1)).mean() / sharpness(image).mean()
        psnr = peak_signal_noise_ratio(back.clamp(-1, 1), image, data_range=2.0, dim=(1, 2, 3))
        pairs = zip(image.split(1), back.split(1), strict=True)
        far = torch.cat([features(x.to(device), y.to(device)) for x, y in pairs]).mean()
        log.write(step, psnr=psnr, sharpness=sharp, perceptual=far)
        sheet = to_pil(sheet_of(image[:16], back[:16]))[0]
        with atomic_write(path) as draft:
            sheet.save(draft, format="PNG")
        if quantise:
            keep_best_vqgan(vqgan, float(psnr), step, log.path.parent / "best")


def keep_best_vqgan(vqgan: VQGAN, decibels: float, step: int, folder: Path) -> None:
    """best/: the averaged weights of the highest PSNR on held-out images; best.json says which."""
    path = folder / "best.json"
    if path.exists() and not decibels > read_json(path)["psnr"]:
        return
    if math.isfinite(decibels):
        save_vqgan(vqgan, folder)
        write_json({"step": step, "psnr": decibels}, path)


def sheet_of(image: Images, back: Images) -> Images:
    """One picture of rows of up to eight: images, below them what came back; white at the end."""
    columns = min(8, len(image))
    filled = [F.pad(x, (0, 0) * 3 + (0, -len(x) % columns), value=1.0) for x in (image, back)]
    return rearrange(torch.stack(filled), "two (r c) ch h w -> 1 ch (r two h) (c w)", c=columns)


if __name__ == "__main__":
    config = read_options(Config, __doc__)
    with errors_said():
        ranks = distributed.start(config.device, config.timeout)
        with run_lock(config.out) if ranks.is_main else nullcontext():
            main(config, ranks)
        distributed.finish(ranks)
