"""Write random checkpoints of the released sizes, under the released names.

    python tests/make_released.py ffhq-4 DIR

DIR then holds scale1.ckpt … as they were published, gigabytes each: the key lists of the fixtures
with random numbers, the real schedule, and a codebook of which as many codes are in use.
"""

import gzip
import json
import math
import sys
from pathlib import Path

import torch

from imagebart.presets import PRESETS

KEYS = Path(__file__).parent / "fixtures" / "official_keys.json.gz"
CONFIGS = {
    "ffhq-4": ("ffhq/4_scales/ffhq-geometric-scale1", "ffhq/4_scales/ffhq-geometric-scale4"),
    "ffhq-2": ("ffhq/2_scales/ffhq-custom-scale1", "ffhq/2_scales/ffhq-custom-scale2"),
}


def main(name: str, folder: Path) -> None:
    keys, preset = json.loads(gzip.decompress(KEYS.read_bytes())), PRESETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(2, preset.T + 1):
        between, last = CONFIGS[name]
        listed = keys[f"configs/{last if t == preset.T else between}.yaml"]
        tensors = {key: numbers(key, shape, dtype, t) for key, shape, dtype in listed}
        bar = torch.tensor(preset.alpha_bar)
        tensors["alphacum"], tensors["alphats"] = bar, torch.cat([bar[:1], bar[1:] / bar[:-1]])
        for key in ("transformer.log_scalors", "transformer_ema.log_scalors"):
            if key in tensors:  # the gain of the file's own scale is the one that was trained
                tensors[key] = 0.1 * torch.eye(preset.T - 1)[t - 2]
        used = torch.randperm(preset.vqgan.K, generator=torch.Generator().manual_seed(0))
        tensors["first_stage_model.quantize.used"] = used[: preset.K].sort().values
        torch.save({"state_dict": tensors, "global_step": 1}, folder / f"scale{t - 1}.ckpt")


def numbers(key: str, shape: list[int], dtype: str, t: int) -> torch.Tensor:
    """Random numbers of about the size that they have in a network; the VQGAN's do not vary."""
    if dtype != "float32":
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    own = 0 if key.startswith("first_stage_model.") else t
    seed = hash_of(key) + own
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x / max(1, math.prod(shape[1:])) ** 0.5


def hash_of(key: str) -> int:
    return int.from_bytes(key.encode()[-6:]) + sum(key.encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
