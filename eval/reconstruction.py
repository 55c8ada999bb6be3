"""Reconstruction quality of a VQGAN on held-out scenery.   [eq. 3, table 4]

    python eval/reconstruction.py --model imagebart/pretrained/scenery --out reconstruction.json

PSNR, sharpness (mean absolute gradient over that of the renders), share of the codebook in use, and
the share of fine detail kept: stars, and windows and edges of buildings at night (regression slope
of the reconstruction's high frequencies on the render's; 1 = all, 0 = none).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from records import run_record
from reporting import run
from tqdm import tqdm

from imagebart import distributed
from imagebart.checkpoint import sha256_of
from imagebart.data import scenery
from imagebart.data.images import to_tensor
from imagebart.data.scenery.world import BUILDING, STAR
from imagebart.folders import SHIPPED, load_vqgan
from imagebart.perceptual import high_pass, psnr, sharpness


@dataclass(frozen=True)
class Config:
    model: Path = SHIPPED  # folder with a vqgan.safetensors
    out: Path | None = None  # where the JSON goes
    n: int = 1000  # held-out images
    device: str = "auto"


def main(config: Config) -> dict:
    if config.n < 1:
        raise ValueError(f"n must be at least 1, got {config.n}")
    device = distributed.pick_device(config.device)
    vqgan = load_vqgan(config.model).to(device).eval()
    size = vqgan.config.image_size
    scores = {"psnr": 0.0, "sharpness_of_renders": 0.0, "sharpness_of_reconstructions": 0.0}
    details, codes = {"stars": [], "night_buildings": []}, set()
    for i in tqdm(range(config.n), mininterval=5):
        scene = scenery.render(scenery.scene_seed("validation", i), size, size)
        image = to_tensor(Image.fromarray(scene.image))[None].to(device)
        with torch.inference_mode():
            tokens = vqgan.encode(image)
            back = vqgan.decode(tokens).clamp(-1, 1)
        codes.update(tokens.flatten().tolist())
        scores["psnr"] += psnr(image, back).item() / config.n
        scores["sharpness_of_renders"] += sharpness(image).item() / config.n
        scores["sharpness_of_reconstructions"] += sharpness(back).item() / config.n
        labels = torch.from_numpy(scene.semantic_map).to(device)
        places = {"stars": labels == STAR}
        if scene.attributes.get("time") == "night":
            places["night_buildings"] = labels == BUILDING
        for name, place in places.items():
            if place.any():
                details[name].append((high_pass(image)[0, :, place], high_pass(back)[0, :, place]))
    scores["sharpness"] = scores["sharpness_of_reconstructions"] / scores["sharpness_of_renders"]
    for name, pairs in details.items():
        if not pairs:
            continue  # no image has any
        render, kept = (torch.cat(part, dim=1) for part in zip(*pairs, strict=True))
        scores[f"{name}_kept"] = ((render * kept).sum() / render.square().sum()).item()
    scores["codes_in_use"] = len(codes) / vqgan.K
    weights = {"vqgan": sha256_of(Path(config.model) / "vqgan.safetensors")}
    return {"n": config.n, "split": "validation", **scores, "sha256": weights, **run_record(device)}


def summary(report: dict) -> str:
    return "\n".join(
        f"{name:30} {value:.4f}" if isinstance(value, float) else f"{name:30} {value}"
        for name, value in report.items()
    )


if __name__ == "__main__":
    run(main, Config, __doc__, summary)
