"""Write the tokens of a data set once: images → token files.   [section 3.2]

    python train/encode.py --vqgan runs/scenery/vqgan --data scenery --out runs/scenery/tokens
    torchrun --standalone --nproc-per-node gpu train/encode.py --vqgan …

The codebook is shrunk to the entries in use: by the held-out images and by `--looked-at` of the
training split, evenly spread; every other entry is mapped to a random used one by a table drawn
once. OUT holds the shrunk `vqgan/` and a token file each for `train/` and `validation/`. Of each it
is said how many of its codes were mapped so: many, if the pictures are others than those that the
codebook was shrunk by. The same command again goes on with what is not there yet. Several ranks
encode their parts of every batch, and the first one writes.
"""

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate
from tqdm import tqdm
from training import errors_said, located

from imagebart import distributed
from imagebart.arguments import as_int
from imagebart.checkpoint import run_lock, sha256_of
from imagebart.conditions import CONDITIONS
from imagebart.data.image_folder import UNREADABLE
from imagebart.data.sources import HELD_OUT, open_data, summary_of
from imagebart.data.tokens import HEADER, TokenFile, TokenWriter
from imagebart.folders import load_vqgan, save_vqgan
from imagebart.notation import Images
from imagebart.quantiser import TOKEN_TABLES
from imagebart.vqgan import VQGAN


@dataclass(frozen=True)
class Config:
    vqgan: Path  # folder of a trained VQGAN, or of an imported model
    out: Path  # folder of the token files
    data: str = "scenery"  # "scenery", or a folder of images
    held_out: float = HELD_OUT  # share of a folder without splits that is its validation split
    unreadable: float = UNREADABLE  # share of the images that may be replaced by others
    size: int | None = None  # pixels a side; the VQGAN's unless given
    count: int | None = None  # images of the training split; all unless given
    validation: int = 2000  # held-out images at most
    looked_at: int = 2000  # training images at most that say, with these, which codes are in use
    flips: bool = False  # each training image mirrored too; its text's left and right change places
    shrink: bool = True  # drop codes that are not in use
    batch: int = 32  # images a rank
    workers: int = 2  # processes that load images, a rank
    precision: str = "bf16"
    seed: int = 0  # of the table for unused codes
    device: str = "auto"
    keep: Path | None = None  # folder where scenes of the training split are, or will be, kept


def main(config: Config, ranks: distributed.Ranks) -> None:
    # ── where we run ──────────────────────────────────────────────────────────────────────────
    device = ranks.device
    vqgan = load_vqgan(config.vqgan)

    # ── what we encode ────────────────────────────────────────────────────────────────────────
    size = config.size or vqgan.config.image_size
    shares = dict(held_out=config.held_out, unreadable=config.unreadable)
    train = open_data(config.data, size, "train", config.count, **shares, keep=config.keep)
    validation = open_data(config.data, size, "validation", config.validation, **shares)
    train = Mirrored(train) if config.flips else train
    splits = {"train": train, "validation": validation}
    contents = {
        name: distributed.same_on_all(data.digest, f"the images of {name}", ranks)
        for name, data in splits.items()
    }
    if ranks.is_main:
        print(f"{config.data}: {summary_of(train)}; validation on {summary_of(validation)}")

    # ── what is there already ─────────────────────────────────────────────────────────────────
    path = config.out / "vqgan" / "vqgan.safetensors"
    finished = {name for name in splits if (config.out / name / HEADER).exists()}
    if finished:
        vqgan = same_vqgan(vqgan, path.parent, config.shrink)
    for name in finished:
        this = {"image_size": size, "count": len(splits[name]), "seed": config.seed}
        this["data_sha256"] = contents[name]
        require_same_tokens(TokenFile(config.out / name), this | {"vqgan_sha256": sha256_of(path)})
    vqgan = vqgan.to(device, memory_format=torch.channels_last).eval()

    grid = (size // vqgan.f, size // vqgan.f)

    def encoded(image: Images, conditions: dict[str, np.ndarray]) -> tuple:
        """Codes (b, h, w) of images, and the tokens (b, m) of their conditions, by name."""
        image = image.to(device, memory_format=torch.channels_last)
        with torch.inference_mode(), distributed.autocast(device, config.precision):
            return vqgan.quantiser.nearest(vqgan.latents(image)).cpu(), conditions

    def code_batches(data, name: str):
        """What `encoded` gives, batch after batch, of all ranks in order."""
        parts = parts_of_batches(len(data), config.batch, ranks)
        mine = [part for part in parts if part]
        how = dict(num_workers=config.workers, collate_fn=partial(conditions_read, grid=grid))
        items = iter(DataLoader(data, batch_sampler=mine, **how))
        for part in tqdm(parts, desc=name, mininterval=5, disable=not ranks.is_main):
            own = encoded(*next(items)) if part else None
            yield from filter(None, distributed.of_all(own, ranks))

    # ── the codes in use ──────────────────────────────────────────────────────────────────────
    if config.shrink and not vqgan.quantiser.shrunk and not finished:
        apart = -(-len(train) // as_int(config.looked_at, "looked_at", 1))
        some = Subset(train, range(0, len(train), apart))
        looked_at = ConcatDataset([validation, some])
        seen = [code.unique() for code, _ in code_batches(looked_at, "codes in use")]
        used = torch.cat(seen).unique()
        vqgan.quantiser.shrink(used, torch.Generator().manual_seed(config.seed))
    if not finished and ranks.is_main:
        save_vqgan(vqgan, config.out / "vqgan")

    # ── the token files ───────────────────────────────────────────────────────────────────────
    for name, data in splits.items():
        if name in finished:
            continue
        if not ranks.is_main:
            for _ in code_batches(data, name):
                pass
            continue
        header = {
            "image_size": size,
            "data": located(config.data),
            "data_sha256": contents[name],
            "split": name,
            "seed": config.seed,
            "names": data.names,
            "vqgan_sha256": sha256_of(path),
        }
        replaced = 0
        with TokenWriter(config.out / name, len(data), grid, vqgan.K, **header) as writer:
            for code, conditions in code_batches(data, name):
                code = code.to(device)
                writer.append(vqgan.quantiser.tokens_for(code), conditions)
                replaced += int(vqgan.quantiser.is_replaced(code).sum())
        share = replaced / (len(data) * math.prod(grid))
        print(f"{name}: {share:.2%} of its codes have no token of their own and got a random one")


def conditions_read(
    items: list[dict], grid: tuple[int, int]
) -> tuple[Images, dict[str, np.ndarray]]:
    """Images, and the tokens (b, m) of each condition that they have; done where images are
    loaded, as reading a map takes longer than a GPU needs for its image."""
    batch = default_collate(items)
    known = {name: kind for name, kind in CONDITIONS.items() if name in batch}
    return batch["image"], {name: kind.tokenise(batch[name], grid) for name, kind in known.items()}


class Mirrored(Dataset):
    """The images of a data set, and behind them all of them mirrored."""

    def __init__(self, data: Dataset):
        self.data, self.names = data, data.names
        self.classes = [*getattr(data, "classes", [])] * 2

    def digest(self) -> str:
        return f"{self.data.digest()}, mirrored too"

    def __len__(self) -> int:
        return 2 * len(self.data)

    def __getitem__(self, index: int) -> dict:
        item = self.data[index % len(self.data)]
        if index < len(self.data):
            return item
        mirrored = item | {"image": item["image"].flip(-1), "text": mirrored_text(item["text"])}
        return mirrored | ({"map": np.fliplr(item["map"]).copy()} if "map" in item else {})


def mirrored_text(text: str) -> str:
    """A caption of the mirrored image: left and right change places."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b(left|right|Left|Right)\b", lambda found: other[found[0]], text)


def parts_of_batches(count: int, batch: int, ranks: distributed.Ranks) -> list[range]:
    """This rank's images of each batch of all ranks, `batch` of every rank; the last ones fewer."""
    batches = distributed.split(range(count), batch * ranks.world)
    parts = ((rows, distributed.part_of(len(rows), ranks)) for rows in batches)
    return [rows[part.start : part.stop] for rows, part in parts]


def same_vqgan(vqgan: VQGAN, folder: Path, shrink: bool) -> VQGAN:
    """The VQGAN that a part of the tokens is from; ValueError if it is not this one, or this one
    shrunk."""
    before = load_vqgan(folder)
    now, then = vqgan.quantiser.shrunk, before.quantiser.shrunk
    if shrink and not now and not then:
        raise ValueError(f"{folder.parent}: must hold no finished tokens of all codes, got some")
    new, old = vqgan.state_dict(), before.state_dict()
    if shrink and then and not now:
        added = {f"quantiser.{name}" for name in TOKEN_TABLES}
        old = {name: x for name, x in old.items() if name not in added}
    same = vqgan.config == before.config and new.keys() == old.keys()
    if not same or not all(torch.equal(x, old[name]) for name, x in new.items()):
        raise ValueError(
            f"{folder.parent}: must hold no finished tokens of another VQGAN, got some"
        )
    return before


def require_same_tokens(tokens: TokenFile, wanted: dict) -> None:
    """ValueError if finished tokens are not those that are wanted."""
    for name, value in wanted.items():
        if tokens.header.get(name, value) != value:
            raise ValueError(
                f"{tokens.folder}: must hold no finished token file, or one whose {name} is "
                f"{value}, got {tokens.header.get(name)}"
            )


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    with errors_said():
        ranks = distributed.start(config.device)
        with run_lock(config.out) if ranks.is_main else nullcontext():
            main(config, ranks)
        distributed.finish(ranks)
