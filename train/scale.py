"""Train one scale, or one network for all: p_θ^{t-1}(x_{t-1} | x_t).   [section 3.3, eq. 7, 8]

    python train/scale.py --preset scenery --tokens runs/scenery/tokens --out runs/scenery
    python train/scale.py --preset tiny --t 2 --tokens runs/tiny/tokens --out runs/tiny
    torchrun --standalone --nproc-per-node gpu train/scale.py --preset … --t 3 --tokens … --out …
    torchrun --nnodes 2 --nproc-per-node gpu --rdzv-backend c10d --rdzv-endpoint HOST:PORT train/…

Scales never talk to each other: train them one after another or each on its own machine, into the
same OUT. A joint preset is one network and one run without --t, whose steps take the scales in
turn. The same command again resumes. OUT is a model that loads once all scales are there; the run
itself lies under OUT/checkpoints/scale_T, or scale_joint: checkpoints, metrics.jsonl, run.json, and
best.safetensors, the weights of the lowest held-out loss, which may replace those in OUT.

The batch is the preset's on any number of GPUs: batch = ranks × images at once × accumulation, as
even as can be; with --shard it must be a multiple of the ranks. How many fit is estimated from fake
tensors (memory.py), and said. Where none does, it may with --recompute, and with --shard over
several GPUs.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from memory import CHAIN_ADVICE, Blocks, cost_of, images_at_once, peak_flops
from muon import Muon
from running import TrainingRun
from saving import Skips, without_infinite
from sharding import Whole, shard, whole
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import (
    Log,
    errors_said,
    machine_of,
    must_stay,
    read_options,
    report,
    warmup_cosine,
)

from imagebart import distributed
from imagebart.checkpoint import (
    EMA,
    Checkpoints,
    load_tensors,
    read_json,
    remove_drafts,
    run_lock,
    save_tensors,
    sha256_of,
    write_json,
)
from imagebart.conditions import ABSENT, ConditionShape, drop
from imagebart.data.batches import Batches
from imagebart.data.tokens import TokenFile
from imagebart.denoiser import Denoiser, DenoiserConfig
from imagebart.diffusion import MultinomialDiffusion
from imagebart.distributed import Ranks
from imagebart.folders import JOINT, load_vqgan, save_scale, save_vqgan, scale_file
from imagebart.int8 import restore_rows
from imagebart.presets import Preset, ScaleRecipe, find_preset
from imagebart.vqgan import VQGAN


@dataclass(frozen=True)
class Config:
    tokens: Path  # what train/encode.py wrote
    out: Path  # the model's folder, shared by all scales
    t: int | None = None  # the scale, 2 to T; not given for a joint preset, which learns them all
    preset: str = "scenery"  # a row of imagebart/presets.py; "list" prints them
    init: Path | None = None  # a model whose scale t to start from, or the file of any scale
    steps: int | None = None  # instead of the preset's
    batch: int | None = None  # instead of the preset's, over all ranks
    learning_rate: float | None = None  # instead of the preset's; Muon's changes in proportion
    precision: str | None = None  # instead of the preset's: "fp32" or "bf16"
    seed: int = 0
    device: str = "auto"
    at_once: int | None = None  # images of a rank in one pass; as many as fit unless given
    compile: bool = False  # compile the blocks of the network: slow to start, faster then
    recompute: bool = False  # activation checkpointing: less memory, a third more time
    shard: bool = False  # each of several ranks holds a part of the weights (FSDP2, sharding.py)
    tensorboard: bool = False  # the log for TensorBoard too, beside metrics.jsonl
    override: bool = False  # resume although data or options are others than until now
    timeout: float = 600  # seconds without a step after which a run of several ranks ends
    save_every: int = 500  # steps between checkpoints
    look_every: int = 500  # steps between validations


def main(config: Config, ranks: Ranks) -> None:
    # ── where we run ──────────────────────────────────────────────────────────────────────────
    preset, device = find_preset(config.preset), ranks.device
    scales, recipe = scales_of(preset, config), recipe_of_scale(config, preset)
    require_apart(preset, config.out)
    in_shards = config.shard and ranks.world > 1
    if in_shards and recipe.muon:
        raise ValueError(f"--shard must be given for AdamW alone, got {config.preset} with Muon")
    part = part_of_batch(recipe.batch, ranks, in_shards)
    torch.manual_seed(config.seed)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where a product is in fp32

    # ── what we learn from ────────────────────────────────────────────────────────────────────
    tokens, held_out = TokenFile(config.tokens / "train"), TokenFile(config.tokens / "validation")
    vqgan, shape = load_vqgan(config.tokens / "vqgan"), preset.denoiser(scales[-1])
    weights = partial(sha256_of, config.tokens / "vqgan" / "vqgan.safetensors")
    digest = distributed.same_on_all(weights, "the VQGAN", ranks)
    data = distributed.same_on_all(tokens.digest, "the tokens", ranks)
    for part_of_data in (tokens, held_out):
        require_tokens_fit(part_of_data, shape, digest)
    chances = chances_of(shape, recipe)
    diffusion = MultinomialDiffusion(preset.alpha_bar, tokens.K)

    # ── what we learn ─────────────────────────────────────────────────────────────────────────
    precision = distributed.precision_on(device, recipe.precision)
    how = precision, config.recompute, ranks.world, in_shards
    cost = partial(cost_of, shape, diffusion, scales[-1], *how)
    fits = config.at_once, recipe.batch, len(part), ranks, cost, CHAIN_ADVICE
    at_once, needs = images_at_once(*fits)
    flops = (needs.image_flops, peak_flops(device)) if needs else None
    denoiser = Denoiser(shape, diffusion, scales[-1])
    begin(denoiser, vqgan, tokens, config.init)
    loss_t = Loss(denoiser.to(device))
    if config.recompute:
        Blocks(denoiser).recompute()
    if config.compile:
        Blocks(denoiser).compile()
    if in_shards:
        shard(loss_t, Blocks(denoiser).blocks, ranks)
    elif ranks.world > 1:
        loss_t = DistributedDataParallel(loss_t)
    ema = EMA(denoiser, recipe.ema_decay)
    optimisers = optimisers_of(denoiser, recipe, precision)
    rates = {"optimiser": recipe.learning_rate, "muon": recipe.muon}

    # ── where we left off ─────────────────────────────────────────────────────────────────────
    folder = run_folder(config)
    parts = {"denoiser": denoiser, "ema": ema} | optimisers
    parts = {name: Whole(x, ranks) for name, x in parts.items()} if in_shards else parts
    kept = must_stay(config, recipe, vqgan=digest, data=data)
    machine = machine_of(ranks, recipe.precision, at_once)
    machine |= {"image_flops": flops[0], "peak_flops": flops[1]} if flops else {}
    if ranks.is_main:
        remove_drafts(folder)
    learned = [*denoiser.parameters(), *ema.average.values()]

    def publish(state: dict) -> None:
        with run_lock(config.out, wait=True):  # scales share the folder
            remove_drafts(config.out)
            save_vqgan(vqgan, config.out)
            entries = {"names": {name: tokens.names[name] for name in shape.conditions}}
            entries |= {"guidance": preset.guidance, "draws_class": preset.draws_class}
            weights = state["ema"]["average"]
            save_scale(weights, shape, diffusion, denoiser.t, config.out, **entries)

    saves = Checkpoints(folder), parts, learned, kept, machine, publish
    run = TrainingRun(config, recipe, ranks, folder, *saves, in_a_row=len(scales), flops=flops)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────
    images_of_epoch = tokens.repeated(recipe.repeated)
    batches = Batches(len(images_of_epoch), recipe.batch, config.seed, steps=recipe.steps)
    with run:
        for step in run.steps():
            factor = warmup_cosine(step, recipe.steps, recipe.warmup_steps)
            for name, optimiser in optimisers.items():
                for group in optimiser.param_groups:
                    group["lr"] = factor * rates[name]

            t = scales[step % len(scales)]
            generator = torch.Generator().manual_seed(config.seed + 1_000_003 * (step + 1) + t)
            rows = images_of_epoch[batches.at(step)]
            images = forgotten(tokens, rows, denoiser.at(t), generator, chances)

            denoiser.zero_grad(set_to_none=True)
            loss = remember(loss_t, images, t, part, at_once, recipe.precision, ranks)
            norm = learn(denoiser, optimisers, ema, recipe.clip, run.skips)

            done = step + 1
            if run.is_reported(done):
                numbers = dict(norm=norm, learning_rate=recipe.learning_rate * factor)
                numbers |= dict(t=t, loss=distributed.mean(loss, ranks))
                run.report(done, {f"nats at t = {t}": f"{loss.item():.3f}"}, **numbers)
            if run.is_looked_at(done):
                average = parts["ema"].state_dict()["average"]  # all ranks have a part of it
                if ranks.is_main:
                    with report("the held-out loss"):
                        averaged = Denoiser(shape, diffusion, denoiser.t).to(device)
                        averaged.load_state_dict(average)
                        log_held_out(averaged, scales, held_out, run.log, done, recipe.precision)


def part_of_batch(batch: int, ranks: Ranks, in_shards: bool) -> range:
    """This rank's stretch of a batch, not empty. In shards it is as long as that of every rank, or
    ValueError: each pass gathers weights from all ranks, so all must make as many passes."""
    if in_shards:
        distributed.share(batch, ranks, "batch of --shard")
    part = distributed.part_of(batch, ranks)
    if not part:
        raise ValueError(f"batch must be an image a rank, got {batch} over {ranks.world}")
    return part


def forgotten(
    tokens: TokenFile,
    rows: Sequence[int],
    denoiser: Denoiser,
    generator: torch.Generator,
    chances: dict[str, float] | None = None,
) -> list[torch.Tensor]:
    """x_1 → x_{t-1} → x_t of these images: [x_{t-1}, x_t, x_1], and their condition if there is
    one, of which each is left out with its chance."""
    config, x_1 = denoiser.config, tokens.batch(rows)
    images = [*denoiser.diffusion.q_sample_pair(x_1, denoiser.t, generator), x_1]
    condition = tokens.condition(rows, config.conditions)
    if condition is not None:
        if chances is not None:
            condition = drop(condition, config.conditions, chances, config.grid, generator)
        denoiser.require_known(condition)
        images.append(condition)
    return images


def remember(
    loss_t: nn.Module,
    images: list[torch.Tensor],
    t: int,
    part: range,
    at_once: int,
    precision: str,
    ranks: Ranks,
) -> torch.Tensor:
    """L_t in nats per token, and its gradients, of this rank's `part` of the images of all ranks,
    `at_once` in a pass; its mean over the ranks is that of the images."""
    loss = torch.zeros((), device=ranks.device)
    for piece in distributed.split(part, at_once):
        rows = slice(piece.start, piece.stop)
        share = len(piece) * ranks.world / len(images[0])  # DDP divides by the ranks
        with distributed.gathering(loss_t, piece.stop == part.stop):
            with distributed.autocast(ranks.device, precision):
                of_piece = (distributed.sent(x[rows], ranks.device) for x in images)
                mean = loss_t(*of_piece, t=t).mean() * share
            mean.backward()
        loss += mean.detach()
    return loss


class Loss(nn.Module):
    """L_t: a module of its own, so that ranks share its gradients whatever t is."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_prev, x_t, x_1, condition=None, *, t: int) -> torch.Tensor:
        return self.denoiser.at(t).loss(x_prev, x_t, x_1, condition)


def learn(
    denoiser: Denoiser,
    optimisers: dict[str, torch.optim.Optimizer],
    ema: EMA,
    clip: float,
    skips: Skips,
) -> torch.Tensor:
    """A step along the gradients that are finite; the gradients' norm."""
    norm = whole(nn.utils.clip_grad_norm_(denoiser.parameters(), clip))
    skips.note(without_infinite(denoiser.parameters(), norm))
    for optimiser in optimisers.values():
        optimiser.step()
    ema.update()
    return norm


def scales_of(preset: Preset, config: Config) -> list[int]:
    """The scales that this run learns; ValueError if that is not what the preset is trained for."""
    if preset.joint and config.t is not None:
        raise ValueError(
            f"--t must not be given for {config.preset}, one network for all scales, got {config.t}"
        )
    if not preset.joint and config.t is None:
        raise ValueError(f"--t must be given for {config.preset}, 2 to {preset.T}, got none")
    return list(range(2, preset.T + 1)) if preset.joint else [config.t]


def recipe_of_scale(config: Config, preset: Preset) -> ScaleRecipe:
    """The preset's recipe, but for what is given."""
    names = ("batch", "precision")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    recipe = replace(preset.scale, **given).lasting(config.steps or preset.scale.steps)
    return recipe if config.learning_rate is None else recipe.at_rate(config.learning_rate)


def require_apart(preset: Preset, folder: Path) -> None:
    """ValueError if OUT holds a model of the other kind: one network for all, or one a scale."""
    path = folder / "config.json"
    scales = read_json(path).get("denoisers", {}) if path.exists() else {}
    if scales and (JOINT in scales) != preset.joint:
        kind = "one network for all scales" if preset.joint else "a network a scale"
        raise ValueError(f"{folder}: must hold {kind} or nothing, got scales {', '.join(scales)}")


def require_tokens_fit(tokens: TokenFile, shape: DenoiserConfig, digest: str) -> None:
    """ValueError unless tokens are of the VQGAN whose SHA-256 is `digest`, on the denoiser's grid,
    with the conditions that it takes, within their vocabularies and of every image if it must
    have them, and as many classes, and kinds of maps, as it knows."""
    folder = tokens.folder
    if tokens.vqgan_sha256 != digest:
        raise ValueError(
            f"{folder}: must hold tokens of the VQGAN beside it, {digest}, "
            f"got those of {tokens.vqgan_sha256}"
        )
    if (tokens.height, tokens.width) != shape.grid:
        got = tokens.height, tokens.width
        raise ValueError(f"{folder}: must hold tokens of a grid of {shape.grid}, got {got}")
    for name, condition in shape.conditions.items():
        names = tokens.names[name]
        if names and len(names) != condition.vocabulary:
            raise ValueError(
                f"{folder}: must have {condition.vocabulary} names of {name} for this preset, "
                f"got {len(names)}"
            )
        require_given(tokens, name, condition, shape.condition_dropout)


def require_given(
    tokens: TokenFile, name: str, condition: ConditionShape, condition_dropout: bool
) -> None:
    """ValueError unless every image has this condition, or may lack it, within its vocabulary."""
    without = []
    for rows in distributed.split(range(len(tokens)), 8192):
        part = tokens.condition(rows, {name: condition})
        low, high = int(part.min()), int(part.max())
        if low < ABSENT or high >= condition.vocabulary:
            raise ValueError(
                f"{tokens.folder}: {name} must lie in [0, {condition.vocabulary}), "
                f"got {low} to {high} in images {rows.start} to {rows.stop - 1}"
            )
        without += [rows[i] for i in (part == ABSENT).all(1).nonzero()[:, 0].tolist()]
    if without and not condition_dropout:
        raise ValueError(
            f"{tokens.folder}: every image must have a {name} for a preset without "
            f"condition_dropout, got {len(without)} images that have none, first image {without[0]}"
        )


def chances_of(shape: DenoiserConfig, recipe: ScaleRecipe) -> dict[str, float]:
    """How probably each condition is left out; ValueError unless the denoiser allows for it."""
    chances = {name: recipe.condition_dropout.get(name, 0.0) for name in shape.conditions}
    if shape.condition_dropout != any(chances.values()):
        raise ValueError(
            f"condition_dropout must be {any(chances.values())} for chances of {chances}, "
            f"got {shape.condition_dropout}"
        )
    return chances


def begin(denoiser: Denoiser, vqgan: VQGAN, tokens: TokenFile, init: Path | None) -> None:
    """What is known before the first step: the codes' vectors, the weights of `init`, a model or
    the file of a scale, and the pieces that captions are made of, beside those that it knows."""
    denoiser.initialise_from_codebook(vqgan.quantiser.token_vectors().detach())
    if init is not None:
        is_file = init.suffix == ".safetensors"
        start_from(denoiser, init if is_file else init / scale_file(denoiser.config, denoiser.t))
    text = denoiser.config.conditions.get("text")
    if text is not None and text.vectors:
        denoiser.know_text(tokens.condition(range(len(tokens)), {"text": text}))


def optimisers_of(
    denoiser: Denoiser, recipe: ScaleRecipe, precision: str
) -> dict[str, torch.optim.Optimizer]:
    """AdamW, "optimiser"; and "muon" for the layers' matrices, if the recipe has a rate for it.

    What has two dimensions decays, tables of tokens and positions among it; biases and norms do
    not.
    """

    def is_layers(name: str, p: nn.Parameter) -> bool:
        return bool(recipe.muon) and ".blocks." in name and p.ndim == 2

    layers = [p for name, p in denoiser.named_parameters() if is_layers(name, p)]
    others = [p for name, p in denoiser.named_parameters() if not is_layers(name, p)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimisers = {
        "optimiser": torch.optim.AdamW(groups, recipe.learning_rate, (0.9, 0.95), fused=True)
    }
    if layers:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimisers["muon"] = Muon(layers, recipe.muon, recipe.weight_decay, dtype)
    return optimisers


def start_from(denoiser: Denoiser, path: Path) -> None:
    """Copy what has the same name and shape: all but the condition's, if only that is new. Which
    row of a table a piece of text has is copied with that table."""
    weights, own = restore_rows(load_tensors(path)), denoiser.state_dict()
    fitting = {name: x for name, x in weights.items() if name in own and x.shape == own[name].shape}
    for name in [name for name in fitting if name.endswith(".text.row")]:
        if name.replace("row", "tokens.weight") not in fitting:
            del fitting[name]
    if not fitting:
        raise ValueError(f"{path}: must hold weights of this shape, got none that fit")
    denoiser.load_state_dict(own | fitting)


@torch.no_grad()
def log_held_out(
    averaged: Denoiser, scales: list[int], held_out: TokenFile, log: Log, step: int, precision: str
) -> None:
    """Nats per token of at most 512 held-out images, with the same noise every time; the averaged
    weights are kept if these are the fewest."""
    device, nats = next(averaged.parameters()).device, []
    rows = range(min(512, len(held_out)))
    for t in scales:
        scale, total = averaged.at(t), 0.0
        images = forgotten(held_out, rows, scale, torch.Generator().manual_seed(0))
        for piece in torch.arange(len(rows)).split(64):
            with distributed.autocast(device, precision):
                total += scale.loss(*(x[piece].to(device) for x in images)).sum().item()
        nats.append(total / images[0].numel())
        log.write(step, t=t, held_out=nats[-1])
    nats = sum(nats) / len(nats)
    keep_best_scale(averaged, nats, step, log.path.parent)


def keep_best_scale(averaged: Denoiser, nats: float, step: int, folder: Path) -> None:
    """best.safetensors: the averaged weights of the lowest held-out loss; best.json says which."""
    path = folder / "best.json"
    if path.exists() and not nats < read_json(path)["held_out"]:
        return
    if math.isfinite(nats):
        save_tensors(averaged.state_dict(), folder / "best.safetensors")
        write_json({"step": step, "held_out": nats}, path)


def run_folder(config: Config) -> Path:
    return config.out / "checkpoints" / f"scale_{JOINT if config.t is None else config.t}"


if __name__ == "__main__":
    config = read_options(Config, __doc__)
    with errors_said():
        ranks = distributed.start(config.device, config.timeout)
        with run_lock(run_folder(config)) if ranks.is_main else nullcontext():
            main(config, ranks)
        distributed.finish(ranks)
