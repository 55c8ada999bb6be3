"""Write the tokens of a data set once: images → token files.   [section 3.2]

    python train/encode.py --vqgan runs/scenery/vqgan --data scenery --out runs/scenery/tokens

The codebook is shrunk to the entries that held-out images use; every other entry is mapped to a
random used one by a table drawn once. OUT holds the shrunk `vqgan/` and a token file each for
`train/` and `validation/`. The same command again goes on with what is not there yet.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.utils.data import DataLoader
from tqdm import tqdm
from training import located, run_alone

from imagebart import distributed
from imagebart.checkpoint import sha256_of
from imagebart.conditions import CONDITIONS
from imagebart.data.image_folder import UNREADABLE
from imagebart.data.sources import HELD_OUT, open_data, summary_of
from imagebart.data.tokens import HEADER, TokenFile, TokenWriter
from imagebart.folders import load_vqgan, save_vqgan
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
    validation: int = 2000  # held-out images, which decide which codes are in use
    shrink: bool = True  # drop codes that held-out images do not use
    batch: int = 32
    workers: int = 2
    precision: str = "bf16"
    seed: int = 0  # of the table for unused codes
    device: str = "auto"


def main(config: Config) -> None:
    # ── where we run ──────────────────────────────────────────────────────────────────────────
    device = distributed.pick_device(config.device)
    vqgan = load_vqgan(config.vqgan)

    # ── what we encode ────────────────────────────────────────────────────────────────────────
    size = config.size or vqgan.config.image_size
    shares = dict(held_out=config.held_out, unreadable=config.unreadable)
    train = open_data(config.data, size, "train", config.count, **shares)
    validation = open_data(config.data, size, "validation", config.validation, **shares)
    splits = {"train": train, "validation": validation}
    contents = {name: data.digest() for name, data in splits.items()}
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

    def code_batches(data, name: str):
        """Grids (b, h, w) and {name: tokens (b, m)} of the conditions, batch after batch."""
        loader = DataLoader(data, config.batch, num_workers=config.workers)
        for item in tqdm(loader, desc=name, mininterval=5):
            image = item["image"].to(device, memory_format=torch.channels_last)
            with torch.inference_mode(), distributed.autocast(device, config.precision):
                grid = vqgan.encode(image).cpu()
            conditions = {
                name: kind.tokenise(item[name], tuple(grid.shape[1:]))
                for name, kind in CONDITIONS.items()
                if name in item
            }
            yield grid, conditions

    # ── the codes in use ──────────────────────────────────────────────────────────────────────
    if config.shrink and not vqgan.quantiser.shrunk and not finished:
        seen = [grid.unique() for grid, _ in code_batches(validation, "codes in use")]
        used = torch.cat(seen).unique()
        vqgan.quantiser.shrink(used, torch.Generator().manual_seed(config.seed))
    if not finished:
        save_vqgan(vqgan, config.out / "vqgan")

    # ── the token files ───────────────────────────────────────────────────────────────────────
    for name, data in splits.items():
        if name in finished:
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
        grid = (size // vqgan.f, size // vqgan.f)
        with TokenWriter(config.out / name, len(data), grid, vqgan.K, **header) as writer:
            for parts in code_batches(data, name):
                writer.append(*parts)


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
    run_alone(main, tyro.cli(Config, description=__doc__))
