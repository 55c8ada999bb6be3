"""Train the probe: a small image-text network that knows what scenery shows.

    python train/probe.py --out runs/probe

Renders of scenery, half of them through a VQGAN (`--through`), so that it judges what a chain
paints as it judges the renders. It learns to match pictures with their captions (CLIP's loss), to
name their attributes, and to tell what covers each place. On one device; the same command again
resumes, other options are refused. OUT is a folder that `imagebart.probe.Probe` reads;
metrics.jsonl holds its accuracy on held-out renders, and on the same through the VQGAN.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from training import Log, require_same_run, run_alone, versions, warmup_cosine

from imagebart import distributed
from imagebart.checkpoint import Checkpoints, StopSignal, atomic_write, sha256_of
from imagebart.data import scenery
from imagebart.data.batches import Batches
from imagebart.data.maps import commonest_kinds
from imagebart.data.text import END, START, TEXT_IDS, encode_text
from imagebart.folders import SHIPPED, find_vqgan, load_vqgan
from imagebart.probe import ATTRIBUTES, GRID, ProbeHeads, read, save_probe

SIZE = 128
CAPTION_LENGTH = 40
"""Pieces of text that the probe reads; scenery's longest caption has 32."""
DIGESTED_SCENES = 16
"""Scenes by which another renderer is noticed."""
IGNORE_INDEX = -100
"""An attribute that cannot be seen: cross-entropy passes it over."""


@dataclass(frozen=True)
class Config:
    out: Path  # folder of the probe
    through: Path = SHIPPED  # the model whose VQGAN half of the pictures go through
    count: int = 30_000  # pictures to learn from
    held_out: int = 2_000  # pictures to be measured on
    steps: int = 3_000
    batch: int = 64
    learning_rate: float = 1e-3
    width: int = 192  # of the image tower
    depth: int = 6
    precision: str = "bf16"
    seed: int = 0
    device: str = "auto"
    workers: int = 1  # processes that render
    override: bool = False  # resume although data or options are others than until now
    save_every: int = 250  # steps between checkpoints and measurements


def main(config: Config) -> None:
    # ── where we run ──────────────────────────────────────────────────────────────────────────
    device = distributed.pick_device(config.device)
    torch.manual_seed(config.seed)

    # ── where we left off ─────────────────────────────────────────────────────────────────────
    checkpoints, run = Checkpoints(config.out / "checkpoints"), must_stay_of_probe(config)
    step, left_off = checkpoints.latest() or (0, {})
    if step:
        require_same_run(left_off, run, config.out, config.override)

    # ── what we learn from ────────────────────────────────────────────────────────────────────
    vqgan = load_vqgan(config.through).to(device, memory_format=torch.channels_last).eval()
    train = ProbeImages("train", config.count, vqgan, config, every_other=True)
    held_out = ProbeImages("validation", config.held_out, vqgan, config, every_other=False)

    # ── what we learn ─────────────────────────────────────────────────────────────────────────
    clip = network(config).to(device)
    heads = ProbeHeads(config.width).to(device)
    parameters = [*clip.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, config.learning_rate, (0.9, 0.95), weight_decay=0.05, fused=True
    )
    parts = {"clip": clip, "heads": heads, "optimiser": optimiser}
    if step:
        for name, part in parts.items():
            part.load_state_dict(left_off[name])
    log = Log(config.out / "metrics.jsonl", step, active=True)
    batches = Batches(config.count, config.batch, config.seed, step, config.steps)

    def save(step: int) -> None:
        log.write(step, **evaluate(clip, heads, held_out, device))
        save_probe(clip, heads, config.out)  # never older than what the run goes on from
        state = {name: part.state_dict() for name, part in parts.items()}
        checkpoints.save(step, state | {"run": run, "versions": versions()})

    # ── the loop ──────────────────────────────────────────────────────────────────────────────
    bar = tqdm(total=config.steps, initial=step, mininterval=5)
    with StopSignal() as stop:
        while step < config.steps and not stop.requested:
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * warmup_cosine(step, config.steps, 100)
            seen = train.batch(batches.at(step), torch.Generator().manual_seed(step), device)
            with distributed.autocast(device, config.precision):
                losses = loss_of(clip, heads, *seen)
            loss = sum(losses.values())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()

            step += 1
            bar.update()
            if step % 50 == 0:
                log.write(step, **losses)
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if step % config.save_every == 0:
                save(step)
        if step % config.save_every:
            save(step)
    bar.close()


def must_stay_of_probe(config: Config) -> dict:
    """What the probe is resumed with again: all that changes what it learns, or is measured on."""
    names = ("count", "held_out", "steps", "batch", "learning_rate", "width", "depth", "seed")
    given = {name: getattr(config, name) for name in names}
    return given | pictures_made_of("train", config)


def pictures_made_of(split: str, config: Config) -> dict[str, str]:
    """What the pictures of a split depend on beside their number: the renderer, by its first
    scenes, the VQGAN and its precision."""
    folder, _ = find_vqgan(config.through)
    return {
        "data": Scenes(split, DIGESTED_SCENES).digest(),
        "vqgan": sha256_of(folder / "vqgan.safetensors"),
        "precision": config.precision,
    }


def network(config: Config):
    """CLIP, small: patches of 16 pixels, a text tower for sentences of a few words."""
    from transformers import CLIPConfig, CLIPModel

    def tower(width: int, depth: int, heads: int) -> dict:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "hidden_act": "gelu",
        }

    ids = {"vocab_size": TEXT_IDS, "bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
    text = {**tower(64, 3, 2), **ids, "max_position_embeddings": CAPTION_LENGTH}
    vision = {**tower(config.width, config.depth, config.width // 32)}
    vision |= {"image_size": SIZE, "patch_size": SIZE * 2 // GRID[0]}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))


def loss_of(
    clip, heads: ProbeHeads, pixels: Tensor, ids: Tensor, targets: dict[str, Tensor], kinds: Tensor
) -> dict[str, Tensor]:
    """The three things to learn: captions, attributes, places.

    captions    cross-entropy of the right caption among the batch's, and of the right picture
    attributes  mean cross-entropy of the attributes that can be seen
    places      cross-entropy of what covers each place
    """
    summary, patches = read(clip, pixels)
    image = F.normalize(clip.visual_projection(summary), dim=1)
    text = F.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=1)
    likeness = clip.logit_scale.exp().clamp(max=100) * image.float() @ text.float().T
    own = torch.arange(len(ids), device=ids.device)
    captions = (F.cross_entropy(likeness, own) + F.cross_entropy(likeness.T, own)) / 2

    logits, places = heads(summary, patches)
    each = [F.cross_entropy(logits[name].float(), targets[name]) for name in ATTRIBUTES]
    return {
        "captions": captions,
        "attributes": sum(each) / len(each),
        "places": F.cross_entropy(places.flatten(0, 1).float(), kinds.flatten()),
    }


# ── pictures ──────────────────────────────────────────────────────────────────────────────────


class Scenes(Dataset):
    """Renders of a split, with all that is true of them."""

    def __init__(self, split: str, count: int):
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, list]:
        scene = scenery.render(scenery.scene_seed(self.split, index), SIZE, SIZE)
        absent = {"object": "none"}
        values = {name: scene.attributes.get(name, absent.get(name)) for name in ATTRIBUTES}
        numbers = [
            ATTRIBUTES[name].index(value) if value else IGNORE_INDEX
            for name, value in values.items()
        ]
        kinds = commonest_kinds(scene.semantic_map, GRID).astype(np.uint8)
        return scene.image, kinds, [scene.caption, numbers]

    def digest(self) -> str:
        """The SHA-256 of all scenes."""
        sha = hashlib.sha256()
        for image, kinds, said in (self[i] for i in range(self.count)):
            sha.update(image.tobytes() + kinds.tobytes() + json.dumps(said).encode())
        return sha.hexdigest()


class ProbeImages:
    """Scenes in memory, kept in OUT for the next start; every other one went through the VQGAN, or
    all of them are there twice: as rendered (`images`), and through it (`through`)."""

    def __init__(self, split: str, count: int, vqgan, config: Config, every_other: bool):
        made_of = json.dumps(pictures_made_of(split, config)).encode()
        file = config.out / f"{split}_{count}_{hashlib.sha256(made_of).hexdigest()[:8]}.npz"
        if not file.exists():
            self._render(split, count, vqgan, config, every_other, file)
        held = np.load(file)
        self.images, self.through, self.kinds = held["images"], held["through"], held["kinds"]
        said = json.loads(str(held["said"]))
        self.captions = [caption for caption, _ in said]
        numbers = torch.tensor([numbers for _, numbers in said])
        self.targets = dict(zip(ATTRIBUTES, numbers.unbind(1), strict=True))

    def _render(self, split, count, vqgan, config, every_other: bool, file: Path) -> None:
        loader = DataLoader(
            Scenes(split, count), 32, num_workers=config.workers, collate_fn=lambda rows: rows
        )
        images, through, kinds, said = [], [], [], []
        for rows in tqdm(loader, desc=f"render {split}", mininterval=5):
            drawn, covers, words = zip(*rows, strict=True)
            drawn = np.stack(drawn)
            if every_other:
                drawn[::2] = rebuilt(vqgan, drawn[::2], config.precision)
            else:
                through.append(rebuilt(vqgan, drawn, config.precision))
            images.append(drawn)
            kinds.extend(covers)
            said.extend(words)
        with atomic_write(file) as draft, open(draft, "wb") as opened:
            np.savez(
                opened,
                images=np.concatenate(images),
                through=np.concatenate(through) if through else np.empty(0),
                kinds=np.stack(kinds),
                said=json.dumps(said),
            )

    def batch(self, indices: np.ndarray, generator, device) -> tuple:
        """Images b×3×128×128 in [-1, 1], ids, attributes and kinds; half of them mirrored."""
        mirrored = torch.rand(len(indices), generator=generator) < 0.5
        images = torch.from_numpy(self.images[indices])
        kinds = torch.from_numpy(self.kinds[indices]).long()
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
        kinds = torch.where(mirrored[:, None, None], kinds.flip(2), kinds)
        ids, _ = encode_text([self.captions[i] for i in indices], CAPTION_LENGTH)
        targets = {name: numbers[indices].to(device) for name, numbers in self.targets.items()}
        return in_range(images).to(device), ids.to(device), targets, kinds.to(device)


def in_range(images: Tensor) -> Tensor:
    """b×H×W×3 uint8 → b×3×H×W in [-1, 1]."""
    return rearrange(images, "b h w c -> b c h w").float() / 127.5 - 1


@torch.inference_mode()
def rebuilt(vqgan, images: np.ndarray, precision: str) -> np.ndarray:
    """G(quantised E(x)) of images b×H×W×3 uint8."""
    device = next(vqgan.parameters()).device
    pixels = in_range(torch.from_numpy(images)).to(device, memory_format=torch.channels_last)
    with distributed.autocast(device, precision):
        pixels = vqgan.decode(vqgan.encode(pixels)).float()
    pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return rearrange(pixels, "b c h w -> b h w c").cpu().numpy()


# ── how good it is ────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def evaluate(clip, heads: ProbeHeads, held_out: ProbeImages, device) -> dict[str, float]:
    """Shares that are right, of held-out pictures as rendered and through the VQGAN: attributes,
    places, and the caption of each picture found among a hundred."""
    found = {}
    for name, images in (("render", held_out.images), ("through", held_out.through)):
        logits, places, embedded = [], [], []
        for rows in torch.arange(len(images)).split(100):
            pixels = in_range(torch.from_numpy(images[rows])).to(device)
            summary, patches = read(clip, pixels)
            predicted, covers = heads(summary, patches)
            logits.append({key: value.cpu() for key, value in predicted.items()})
            places.append(covers.argmax(-1).cpu())
            embedded.append(F.normalize(clip.visual_projection(summary), dim=1).cpu())
        for key, truth in held_out.targets.items():
            drawn = torch.cat([part[key] for part in logits]).argmax(1)
            visible = truth != IGNORE_INDEX
            found[f"{name}_{key}"] = (drawn == truth)[visible].float().mean()
        kinds = torch.from_numpy(held_out.kinds).flatten(1)
        found[f"{name}_places"] = (torch.cat(places) == kinds).float().mean()
        found[f"{name}_caption_of_100"] = retrieval(clip, embedded, held_out.captions, device)
    return found


def retrieval(clip, embedded: list[Tensor], captions: list[str], device) -> float:
    """How often a picture is closest to its own caption, or to one that says the same, of 100."""
    right = total = 0
    for i, image in enumerate(embedded):
        own = captions[100 * i : 100 * i + len(image)]
        ids, _ = encode_text(own, CAPTION_LENGTH)
        text = clip.get_text_features(input_ids=ids.to(device)).pooler_output
        closest = (image @ F.normalize(text, dim=1).cpu().T).argmax(1).tolist()
        right += sum(own[j] == own[k] for k, j in enumerate(closest))
        total += len(image)
    return right / total


if __name__ == "__main__":
    run_alone(main, tyro.cli(Config, description=__doc__))
