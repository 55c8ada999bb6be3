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
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from repainting import Repainter, marks_of, seeing_known
from saving import (
    CHECK_EVERY,
    MOST_SKIPPED,
    Saver,
    Skips,
    are_finite,
    checksum,
    snapshot,
    without_infinite,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import tqdm
from training import (
    Log,
    Pace,
    is_reported,
    read_options,
    report,
    require_same_run,
    say,
    stop_early,
    versions,
    warmup_cosine,
    write_run,
)
from watching import Watchdog

from imagebart import distributed
from imagebart.checkpoint import (
    EMA,
    Checkpoints,
    StopSignal,
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
from imagebart.perceptual import (
    PERCEPTUAL,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam,
    reconstruction_loss,
    sharpness,
)
from imagebart.presets import CompressionRecipe, find_preset
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
    steps: int | None = None  # instead of the preset's; what begins later begins in proportion
    batch: int | None = None  # instead of the preset's, over all ranks
    learning_rate: float | None = None  # instead of the preset's
    perceptual: str | None = None  # instead of the preset's: "lpips", "imagenet" or "random"
    precision: str | None = None  # instead of the preset's: "fp32" or "bf16"
    seed: int = 0
    device: str = "auto"
    workers: int = 2  # processes that load images, a rank
    tensorboard: bool = False  # the log for TensorBoard too, beside metrics.jsonl
    override: bool = False  # resume although data or options are others than until now
    timeout: float = 600  # seconds without a step after which a run of several ranks ends
    save_every: int = 250  # steps between checkpoints
    look_every: int = 250  # steps between pictures and validation


def main(config: Config, ranks: distributed.Ranks) -> None:
    # ── where we run ──────────────────────────────────────────────────────────────────────────
    preset = find_preset(config.preset)
    names = ("batch", "learning_rate", "perceptual", "precision")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    recipe = replace(preset.compression, **given).lasting(config.steps or preset.compression.steps)
    part = distributed.share(recipe.batch, ranks)
    torch.manual_seed(config.seed)
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where a product is in fp32

    # ── what we learn from ────────────────────────────────────────────────────────────────────
    size = preset.vqgan.image_size
    shares = dict(held_out=config.held_out, unreadable=config.unreadable)
    train = open_data(config.data, size, "train", preset.train_images or None, **shares)
    held_out = open_data(config.data, size, "validation", 64, **shares)
    if ranks.is_main:
        say(f"{config.data}: {summary_of(train)}; validation on {summary_of(held_out)}")
    look_at = torch.stack([held_out[i]["image"] for i in range(min(64, len(held_out)))])

    # ── what we learn ─────────────────────────────────────────────────────────────────────────
    tokens_held, by_known = config.train != "all", config.train == "known"
    if tokens_held and not config.init:
        raise ValueError("to learn a VQGAN's decoder needs a trained one, --init, got none")
    vqgan = load_vqgan(config.init) if config.init else VQGAN(preset.vqgan)
    if by_known:
        vqgan = seeing_known(vqgan)
        vqgan.hold_all_but_known()
    else:
        vqgan.hold_known()
        if tokens_held:
            vqgan.hold_tokens()
    discriminator = PatchDiscriminator(recipe.discriminator_channels, recipe.discriminator_layers)
    perceptual = PERCEPTUAL[recipe.perceptual]()
    vqgan, discriminator, perceptual = (
        module.to(ranks.device, memory_format=torch.channels_last)
        for module in (vqgan, discriminator, perceptual)
    )
    learner = Repainter(vqgan) if by_known else vqgan
    vqgan_ranks, discriminator_ranks = learner, discriminator
    if ranks.world > 1:
        vqgan_ranks = DistributedDataParallel(learner)
        discriminator_ranks = DistributedDataParallel(discriminator)
    adam = partial(torch.optim.AdamW, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    optimiser = adam([p for p in vqgan.parameters() if p.requires_grad], betas=(0.9, 0.95))
    discriminator_optimiser = adam(
        discriminator.parameters(), lr=recipe.discriminator_learning_rate, betas=(0.5, 0.9)
    )
    ema = EMA(vqgan, recipe.ema_decay)
    usage = torch.zeros(vqgan.quantiser.size, device=ranks.device)
    judgements = torch.zeros(2, device=ranks.device)  # moving averages: of images, reconstructions

    # ── where we left off ─────────────────────────────────────────────────────────────────────
    parts = {
        "vqgan": vqgan,
        "ema": ema,
        "discriminator": discriminator,
        "optimiser": optimiser,
        "discriminator_optimiser": discriminator_optimiser,
    }
    run = {"preset": config.preset, "batch": recipe.batch, "seed": config.seed}
    run |= {name: getattr(recipe, name) for name in ("steps", "learning_rate", "precision")}
    run |= {"perceptual": recipe.perceptual, "train": config.train}
    if ranks.is_main:
        run["data"] = train.digest()
        remove_drafts(config.out)
        remove_drafts(config.out / "checkpoints")
        machine = {"ranks": ranks.world, "device": str(ranks.device)}
        write_run(config.out, config, recipe, run, machine)
    checkpoints = Checkpoints(config.out / "checkpoints")

    def left_off() -> int:
        """Load the newest checkpoint; its step."""
        step, state = checkpoints.latest() or (0, {})
        if state:
            require_same_run(state, run, config.out, config.override)
            for name, part_of_state in parts.items():
                part_of_state.load_state_dict(state[name])
            usage.zero_()
            if ranks.is_main:  # it is the sum over ranks that counts
                usage.copy_(state["usage"])
            judgements.copy_(state["judgements"])
        distributed.require_same(step, "the step to resume from", ranks)
        return step

    def images_from(step: int):
        """The batches of this rank from a step on."""
        batches = Batches(len(train), recipe.batch, config.seed, step, recipe.steps, part)
        return iter(DataLoader(train, batch_sampler=batches, num_workers=config.workers))

    def healthy() -> bool:
        learned = *vqgan.parameters(), *discriminator.parameters(), *ema.average.values()
        return are_finite(learned)

    def save(step: int) -> None:
        of_all = distributed.total(usage, ranks)
        if not ranks.is_main:
            return
        state = {name: part_of_state.state_dict() for name, part_of_state in parts.items()}
        state |= {"usage": of_all, "judgements": judgements}
        state, same = snapshot(state), averaged(vqgan, ema).cpu()

        def write() -> None:
            save_vqgan(same, config.out)
            checkpoints.save(step, state | {"run": run, "versions": versions()})

        saver.start(step, write)

    step = left_off()
    log = Log(config.out / "metrics.jsonl", step, ranks.is_main, config.tensorboard)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────
    bar = tqdm(
        total=recipe.steps, initial=step, disable=not ranks.is_main, unit="step", mininterval=5
    )
    pace = Pace(recipe.batch, ranks.world, None)
    skips, went_back_to = Skips(ranks.device), None
    watched = Watchdog(ranks, config.timeout)
    with StopSignal() as stop, Saver() as saver, watched:
        images = images_from(step)
        while step < recipe.steps and not distributed.on_any_rank(stop.requested, ranks):
            watched.beat(step)
            image = next(images)["image"].to(ranks.device, memory_format=torch.channels_last)
            for group in optimiser.param_groups:
                factor = warmup_cosine(step, recipe.steps, recipe.warmup_steps)
                group["lr"] = recipe.learning_rate * factor
            quantise = tokens_held or step >= recipe.quantise_start
            how = (
                marks_of(range(recipe.batch)[part], image, config.seed, step)
                if by_known
                else quantise
            )
            if not tokens_held and revival_is_due(step, recipe, new=config.init is None):
                revive(vqgan, image, usage, step, config.seed, ranks)
            adversarial = step >= recipe.adversarial_start
            judged = step >= recipe.adversarial_start - recipe.discriminator_head_start

            # the VQGAN: x_0 → reconstruction
            with distributed.autocast(ranks.device, recipe.precision):
                reconstruction, codebook_loss, code = vqgan_ranks(image, how)
                weights = recipe.perceptual_weight, recipe.detail, recipe.edges
                rec = reconstruction_loss(image, reconstruction, perceptual, *weights)
                loss, balance = rec + codebook_loss, torch.zeros((), device=ranks.device)
                if adversarial:
                    discriminator.requires_grad_(False)
                    adv = generator_loss(discriminator(reconstruction))
                    balance = recipe.adversarial_weight * balanced(rec, adv, vqgan, ranks)
                    loss = loss + balance * adv
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm, finite = checked_gradients(vqgan)
            optimiser.step()
            ema.update()
            if quantise:
                usage += finite * torch.bincount(code.flatten(), minlength=len(usage))

            # the discriminator: real or reconstructed
            d_loss = torch.zeros((), device=ranks.device)
            if judged:
                discriminator.requires_grad_(True)
                with distributed.autocast(ranks.device, recipe.precision):
                    both = discriminator_ranks(torch.cat([image, reconstruction.detach()]))
                    real, fake = both.chunk(2)
                    d_loss = discriminator_loss(real, fake)
                    d_loss = d_loss + recipe.lecam_weight * lecam(real, fake, judgements)
                now = [distributed.mean(of.detach().float().mean(), ranks) for of in (real, fake)]
                discriminator_optimiser.zero_grad(set_to_none=True)
                d_loss.backward()
                finite &= checked_gradients(discriminator)[1]
                discriminator_optimiser.step()
                moved = judgements.lerp(torch.stack(now), 0.01)
                judgements.copy_(torch.where(finite, moved, judgements))
            skips.note(finite)

            step += 1
            bar.update()
            reported = is_reported(step, recipe.steps)
            if reported:
                terms = dict(rec=rec, codebook=codebook_loss, balance=balance, discriminator=d_loss)
                numbers = {name: distributed.mean(x, ranks) for name, x in terms.items()}
                numbers |= dict(zip(("logit_real", "logit_fake"), judgements, strict=True))
                codes = int((distributed.total(usage, ranks) > 0).sum())  # since the last revival
                numbers |= dict(norm=norm, codes=codes)
                numbers |= {"skipped": int(skips.all)} if skips.all else {}
                log.write(step, **numbers)
                bar.set_postfix({"rec": f"{rec.item():.3f}"} | pace.at(step), refresh=False)
            if step % config.look_every == 0 or step == recipe.steps:
                path = config.out / f"reconstructions_{step:06d}.png"
                same = averaged(vqgan, ema)
                of_look = marks_of(range(len(look_at)), look_at, 0, 0) if by_known else None
                log_reconstructions(same, look_at, quantise, of_look, path, step, log, ranks)
            if ranks.world > 1 and (step % CHECK_EVERY == 0 or step % config.save_every == 0):
                weights = checksum(vqgan.parameters())
                distributed.require_same(weights, f"the weights after step {step}", ranks)

            # a state that is no numbers is not saved: back to the last that is
            save_is_due = step % config.save_every == 0 or step == recipe.steps
            is_seen = reported or save_is_due
            broken = is_seen and (skips.most >= MOST_SKIPPED or (save_is_due and not healthy()))
            if is_seen and distributed.on_any_rank(bool(broken), ranks):
                saver.wait()
                newest = checkpoints.newest()
                if newest is None or newest == went_back_to:
                    raise ValueError(
                        f"weights and gradients must be finite, got NaN or infinity before step "
                        f"{step}{' again' if newest else ''}; a lower --learning-rate, or "
                        "--precision fp32, may help"
                    )
                step = went_back_to = left_off()
                images = images_from(step)
                skips.begin_anew()
                log = Log(config.out / "metrics.jsonl", step, ranks.is_main, config.tensorboard)
                bar.n = step
                if ranks.is_main:
                    say(f"NaN or infinity in weights or gradients: back to step {step}")
            elif save_is_due:
                save(step)
        if step % config.save_every and step < recipe.steps and healthy():
            save(step)
        if step < recipe.steps:
            saver.wait()
            stop_early(step, stop.requested, ranks)
    bar.close()
    if skips.all and ranks.is_main:
        say(f"{int(skips.all)} steps were made without gradients, which were not finite")
    if replaced := getattr(train, "unreadable_files", []):
        say(f"{len(replaced)} images could not be read and were replaced: {', '.join(replaced)}")


def checked_gradients(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of a network's gradients, and whether they are finite; those that are not become
    zero."""
    norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    return norm, without_infinite(network.parameters(), norm)


def averaged(vqgan: VQGAN, ema: EMA) -> VQGAN:
    """A copy of the VQGAN with the averaged weights."""
    same = copy.deepcopy(vqgan)
    ema.copy_to(same)
    return same


def balanced(rec, adv, vqgan: VQGAN, ranks) -> torch.Tensor:
    """λ of eq. 4's two terms, from the gradients of the whole batch."""
    at = vqgan.last_layer()
    gradients = (torch.autograd.grad(term, at, retain_graph=True)[0] for term in (rec, adv))
    return adaptive_weight(*(distributed.mean(gradient, ranks) for gradient in gradients))


def revival_is_due(step: int, recipe: CompressionRecipe, new: bool) -> bool:
    """When a new codebook meets its first latents; then at intervals, until codes may settle."""
    since = step - recipe.quantise_start
    return (
        since % recipe.revive_every == 0
        and (since > 0 or (since == 0 and new))
        and (step < 0.8 * recipe.steps)
    )


def revive(vqgan: VQGAN, image, usage, step: int, seed: int, ranks) -> None:
    """Move codes unused since the last revival onto this batch's latents (the first time, all)."""
    used = distributed.total(usage, ranks)
    dead = used < 1
    with torch.no_grad():
        z = distributed.gathered(vqgan.latents(image), ranks)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    vqgan.quantiser.revive(dead, z, generator)
    usage.zero_()


@torch.no_grad()
def log_reconstructions(
    vqgan: VQGAN, image, quantise: bool, marks, path: Path, step: int, log: Log, ranks
) -> None:
    """Reconstruct held-out images, or what is marked of them: numbers to the log, a picture to
    look at."""
    if not ranks.is_main:
        return
    learner = vqgan if marks is None else Repainter(vqgan)
    each = [quantise] * len(image) if marks is None else marks.split(1)
    with report(str(path)):
        pairs = zip(image.split(1), each, strict=True)
        back = torch.cat([learner(x.to(ranks.device), how)[0].cpu() for x, how in pairs])
        sharp = sharpness(back.clamp(-1, 1)).mean() / sharpness(image).mean()
        psnr = peak_signal_noise_ratio(back.clamp(-1, 1), image, data_range=2.0, dim=(1, 2, 3))
        log.write(step, psnr=psnr, sharpness=sharp)
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
    try:
        ranks = distributed.start(config.device, config.timeout)
        with run_lock(config.out) if ranks.is_main else nullcontext():
            main(config, ranks)
        distributed.finish(ranks)
    except ValueError as error:
        sys.exit(f"error: {error}")
