"""What the VQGAN loses, and what each level of the chain keeps.   [eq. 3 and 4, figure 9]

    python eval/reconstruction.py --n 500 --out reconstruction.json
    python eval/reconstruction.py --model models/ffhq-4 --data ffhq256 --features legacy --lpips
    python eval/reconstruction.py --n 200 --levels --picture levels.png

PSNR and SSIM of held-out images and their reconstructions, LPIPS where VGG's weights are
on disk, rFID by the probe or another network (networks.py), the share of the codes in use and their
perplexity, and sharpness (mean absolute gradient over the images'). Of scenery also the share of
its smallest lights that is kept (the fine structure of stars, and of buildings at night: projection
of the reconstruction's high frequencies on the render's; 1 = all, 0 = none).

`--levels`: every level x_t as a compressed picture. x_t ~ q(x_t | x_1) is decoded by the chain from
scale t down; its bits are Σ_{s > t} L_s, what the bound pays for it (eq. 2), a pixel dimension. At
t = T nothing is left of the image: a sample, for no bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networks import TITLES, open_network
from records import Run, image_digest, sha256_of_images
from reporting import run
from rows import Columns, ImageRows
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from tqdm import tqdm
from uncertainty import distance_interval, feature_distance, mean_interval

from imagebart import ImageBART, distributed, show
from imagebart.data import scenery
from imagebart.data.images import to_bytes, to_pil
from imagebart.data.scenery.world import BUILDING, STAR
from imagebart.data.sources import HELD_OUT, open_data
from imagebart.editing.process import MaskedProcess
from imagebart.folders import SHIPPED, load_vqgan
from imagebart.perceptual import LPIPS, high_pass, sharpness
from imagebart.probe import SHIPPED_PROBE
from imagebart.vqgan import VQGAN

DETAILS = ("stars", "night_buildings")
LEVELS_SHOWN = 6


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED  # folder with a vqgan.safetensors
    data: str = "scenery"  # "scenery", or a folder of images
    held_out: float = HELD_OUT  # share of a folder without splits that training held out
    n: int = 1000  # held-out images
    features: str = "probe"  # the network of rFID, see networks.py
    lpips: bool = False  # measure LPIPS as well (VGG's weights must be on disk)
    levels: bool = False  # every level of the chain as well: the folder must have one
    probe: Path | None = None  # the shipped one unless given
    inception: Path | None = None  # the network's weights; default: where torch.hub keeps them
    dinov2: Path | None = None  # a DINOv2 model's folder
    seed: int = 0  # of the noise of levels
    out: Path | None = None  # where the JSON goes
    picture: Path | None = None  # where a picture of the levels goes, a PNG
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 2:
        raise ValueError(f"n must be at least 2, got {config.n}")
    if config.picture and not config.levels:
        raise ValueError("--picture shows --levels")
    device = distributed.pick_device(config.device)
    uses_probe = [config.probe or SHIPPED_PROBE] if config.features == "probe" else []
    measured = Run(config, [config.model, *uses_probe])
    vqgan = load_vqgan(config.model).to(device).eval()
    folders = dict(inception=config.inception, probe=config.probe, dinov2=config.dinov2)
    network = open_network(config.features, **folders).to(device)
    lpips = LPIPS().to(device) if config.lpips else None
    chain = ImageBART.from_pretrained(config.model, device=device) if config.levels else None
    images = HeldOut(config.data, vqgan.config.image_size, config.n, config.held_out)
    if len(images) < 2:
        raise ValueError(f"{config.data}: held-out images must be at least 2, got {len(images)}")
    measured.reads(images=images.data.digest(), features=network.sha256)
    kept = measured.rows("reconstructions", len(images), columns_of_images(vqgan, network, lpips))
    for (i,) in tqdm([*kept.missing()], desc="reconstructions", mininterval=5):
        kept.put([i], **measure_image(images, i, vqgan, network, lpips))
    report = {"split": "validation", **reconstruction_figures(kept, vqgan.K, config.features)}
    if chain:
        report["levels"] = measure_levels(chain, images, config, measured)
        if config.picture:
            picture_of_levels(chain, images, config.seed).save(config.picture)
    return report | measured.record(
        device,
        data=sha256_of_images(row.tobytes() for row in kept["sha256"]),
        n=len(images),
        seeds=(config.seed, config.seed + len(images) - 1),
    )


class HeldOut:
    """Held-out images (1, 3, H, W) in [-1, 1], and where their details are if they are scenery."""

    def __init__(self, data: str, size: int, n: int, share: float = HELD_OUT):
        self.scenery, self.size = data == "scenery", size
        self.data = open_data(data, size, "validation", n, held_out=share, strict=True)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Tensor:
        return self.data[i]["image"][None]

    def details(self, i: int) -> dict[str, np.ndarray]:
        """{detail: where it is, H×W} of a scene."""
        if not self.scenery:
            return {}
        scene = scenery.render(scenery.scene_seed("validation", i), self.size, self.size)
        night = scene.attributes.get("time") == "night"
        places = (scene.semantic_map == STAR, (scene.semantic_map == BUILDING) & night)
        return dict(zip(DETAILS, places, strict=True))


# ── reconstructions ───────────────────────────────────────────────────────────────────────────


def columns_of_images(vqgan: VQGAN, network: nn.Module, lpips: LPIPS | None) -> Columns:
    h, w = vqgan.config.grid
    names = ["psnr", "ssim", "sharpness_of_images", "sharpness_of_reconstructions"]
    names += ["lpips"] if lpips else []
    details = {name: ("f8", 2) for name in DETAILS}  # kept, and all there is
    features = network.columns["features"]
    shared = {"tokens": ("i4", h * w), "sha256": ("u1", 32), "real": features, "back": features}
    return {**dict.fromkeys(names, ("f8", 1)), **details, **shared}


@torch.inference_mode()
def measure_image(
    images: HeldOut, i: int, vqgan: VQGAN, network: nn.Module, lpips: LPIPS | None
) -> dict:
    """The columns of one image."""
    device = next(vqgan.parameters()).device
    image = images[i].to(device)
    tokens = vqgan.encode(image)
    back = vqgan.decode(tokens).clamp(-1, 1)
    pixels = np.asarray(to_pil(image)[0])
    columns = distortion(image, back) | {
        "sharpness_of_images": sharpness(image),
        "sharpness_of_reconstructions": sharpness(back),
        "tokens": tokens,
        "sha256": np.frombuffer(image_digest(pixels), np.uint8),
        "real": network(to_bytes(image))["features"],
        "back": network(to_bytes(back))["features"],
    }
    if lpips:
        columns["lpips"] = lpips(image, back)
    for name, place in images.details(i).items():
        render, copy = (high_pass(x)[0, :, torch.from_numpy(place)] for x in (image, back))
        columns[name] = [[float((render * copy).sum()), float(render.square().sum())]]
    return columns


def distortion(image: Tensor, back: Tensor) -> dict:
    """PSNR in dB and SSIM of one image, both of pixels in [-1, 1]. SSIM compares brightness with
    black, so it is that of pixels in [0, 1]."""
    back, image = (back + 1) / 2, (image + 1) / 2
    return {
        "psnr": peak_signal_noise_ratio(back, image, data_range=1.0),
        "ssim": structural_similarity_index_measure(back, image, data_range=1.0),
    }


def reconstruction_figures(kept: ImageRows, K: int, features: str) -> dict:
    """Means over images, with their intervals; what is known of the set as a whole."""
    report = {}
    for name in ("psnr", "ssim", "lpips", "sharpness_of_images", "sharpness_of_reconstructions"):
        if name in kept.table.dtype.names:
            report[name] = float(kept[name].mean())
            report[f"{name}_interval"] = mean_interval(kept[name][:, 0])
    report["sharpness"] = report["sharpness_of_reconstructions"] / report["sharpness_of_images"]
    for name in DETAILS:
        some, all_ = kept[name].sum(0)
        if all_ > 0:
            report[f"{name}_kept"] = float(some / all_)
    pair = torch.from_numpy(np.array(kept["back"])), torch.from_numpy(np.array(kept["real"]))
    title = f"r{TITLES[features] or ''}FID@{kept.n}"
    report["rfid"] = {
        "name": title,
        "value": feature_distance(*pair),
        "interval": distance_interval(*pair),
    }
    counts = np.bincount(kept["tokens"].flatten(), minlength=K)
    p = counts[counts > 0] / counts.sum()
    report["codes_in_use"] = float((counts > 0).mean())
    report["perplexity"] = float(np.exp(-(p * np.log(p)).sum()))
    return report


# ── figure 9 ──────────────────────────────────────────────────────────────────────────────────


def measure_levels(model: ImageBART, images: HeldOut, config: Config, measured: Run) -> list[dict]:
    """{t, bits a pixel dimension, PSNR, SSIM, their intervals} of every level."""
    columns = dict.fromkeys(("bits", "psnr", "ssim"), ("f8", model.T))
    kept = measured.rows("levels", len(images), columns)
    for (i,) in tqdm([*kept.missing()], desc="levels", mininterval=5):
        image, seed = images[i].to(model.device), config.seed + i
        found = [distortion(image, back) for back in levels_of(model, image, seed)]
        row = {name: [[float(one[name]) for one in found]] for name in ("psnr", "ssim")}
        kept.put([i], bits=[bits_of_levels(model, image, seed)], **row)
    rows = []
    for t in range(1, model.T + 1):
        row = {"t": t}
        for name in columns:
            values = kept[name][:, t - 1]
            row |= {name: float(values.mean()), f"{name}_interval": mean_interval(values)}
        rows.append(row)
    return rows


@torch.inference_mode()
def levels_of(model: ImageBART, image: Tensor, seed: int) -> Iterator[Tensor]:
    """x_1 … x_T of an image (1, 3, H, W), each as a picture."""
    grid = model.vqgan.encode(image)
    everywhere = torch.ones_like(grid, dtype=torch.bool)
    x_1 = grid.flatten(1)
    for t in range(1, model.T + 1):
        generator = torch.Generator().manual_seed(seed)
        x = model.diffusion.q_sample_marginal(x_1.cpu(), t, generator).to(model.device)
        process = MaskedProcess(model, grid, everywhere, 1, seed=seed)
        for s in range(t, 1, -1):
            x = process.denoise(x, s, [0])
        yield model.generate(x.reshape(grid.shape)).clamp(-1, 1)


def bits_of_levels(model: ImageBART, image: Tensor, seed: int) -> list[float]:
    """Σ_{s > t} L_s of the image for t = 1 … T, in bits a pixel dimension."""
    pixels = (image + 1) / 2
    bits = {s: float(b) for s, b in model.bits_per_token(pixels, seed=seed).items()}
    tokens = model.denoisers[2].n / image.numel()
    return [tokens * sum(bits[s] for s in range(t + 1, model.T + 1)) for t in range(1, model.T + 1)]


def picture_of_levels(model: ImageBART, images: HeldOut, seed: int) -> show.Picture:
    """Images, and below them their levels."""
    shown = range(min(LEVELS_SHOWN, len(images)))
    rows = [[to_pil(images[i])[0] for i in shown]]
    columns = [[*levels_of(model, images[i].to(model.device), seed + i)] for i in shown]
    rows += [[to_pil(column[t])[0] for column in columns] for t in range(model.T)]
    names = ["image", *(f"t = {t}" for t in range(1, model.T + 1))]
    captions = [c for name in names for c in (name, *[""] * (len(shown) - 1))]
    return show.grid([one for row in rows for one in row], columns=len(shown), captions=captions)


def summary(report: dict) -> str:
    lines = [f"{report['rfid']['name']:30} {report['rfid']['value']:.4f}"]
    lines += [f"{k:30} {v:.4f}" for k, v in report.items() if isinstance(v, float)]
    for row in report.get("levels", []):
        lines.append(
            f"t = {row['t']}  {row['bits']:.4f} bits a pixel dimension  {row['psnr']:.2f} dB  "
            f"SSIM {row['ssim']:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
