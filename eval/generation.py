"""FID, IS, KID and CLIP-score of generated images, with a run record.

    python eval/generation.py --model runs/ffhq --reference ffhq256 --n 50000   # a model's samples
    python eval/generation.py --images results --reference ffhq256.npz --metrics fid is
    torchrun --standalone --nproc-per-node gpu eval/generation.py --model ...   # on every GPU

Sample i has the seed `seed + i`, so the images do not depend on the number of GPUs; they are
rounded to 8 bits. The reference is resized and cropped to the samples' size like training data.
One line per metric is printed; hashes, seeds, versions, hardware and time go to --out.
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from einops import rearrange
from metrics import MIN_IMAGES, ImageMetrics
from PIL import Image
from records import run_record
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from imagebart import ImageBART
from imagebart.checkpoint import sha256_of, write_json
from imagebart.conditions import class_count
from imagebart.data.images import ImageFolder, SceneryData
from imagebart.distributed import finish, part_of, split, start
from imagebart.options import Conditions, SamplingOptions, as_dataclass, options_given

METRIC_PACKAGES = ("torch", "torchmetrics", "torch-fidelity", "transformers", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(SamplingOptions, without=Conditions.__annotations__)):
    model: str | None = None  # a folder or a Hub id; the shipped model if there is no --images
    images: Path | None = None  # measure the images of this folder instead of a model's samples
    reference: str | None = None  # real pictures: a folder, "scenery", or their statistics (.npz)
    metrics: tuple[Literal["fid", "is", "kid", "clip"], ...] = ("fid", "is", "kid")
    # how many; default: every picture or caption there is, or 10000 samples (also --n, a name that
    # torchrun mistakes for one of its own)
    num_images: Annotated[int | None, tyro.conf.arg(aliases=["--n"])] = None
    batch: int = 32  # images per step on each device
    seed: int = 0  # of sample 0, and of the random subsets of IS and KID
    captions: str | None = None  # the prompts: a text file with one in each line, or "scenery"
    clip: Path | None = None  # the folder of a CLIP model (Hugging Face's layout)
    inception: Path | None = None  # the network's weights; default: where torch.hub keeps them
    save_images: Path | None = None  # keep the samples in this folder, as PNG
    save_stats: Path | None = None  # keep the reference's mu, sigma, n (.npz), for next time
    out: Path = Path("generation.json")  # where the run record goes
    device: str = "auto"


def check(config: Config) -> None:
    """ValueError for options that do not fit together."""
    names, stats, keep = set(config.metrics), is_stats(config.reference), config.save_images
    rules = {
        "batch must be at least 1": config.batch >= 1,
        f"num_images must be at least {MIN_IMAGES}": config.num_images is None
        or config.num_images >= MIN_IMAGES,
        "metrics must name at least one": names,
        "fid and kid need --reference": config.reference or not names & {"fid", "kid"},
        "kid needs reference pictures, not statistics": not (stats and "kid" in names),
        "clip needs --clip, the folder of a CLIP model": config.clip or "clip" not in names,
        "clip needs --captions": config.captions or config.images or "clip" not in names,
        "--save-stats needs fid, and reference pictures": not config.save_stats
        or ("fid" in names and not stats),
        "--save-images needs an empty folder": not (keep and keep.exists() and any(keep.iterdir())),
        "--images excludes --model, --captions and --save-images": not config.images
        or not (config.model or config.captions or keep),
    }
    for sentence, holds in rules.items():
        if not holds:
            raise ValueError(sentence)


def is_stats(reference: str | None) -> bool:
    return reference is not None and reference.endswith(".npz")


# ------------------------------------------------------------------------------------------------
# Sources: batches of uint8 images (b 3 H W) and their captions

ImageBatches = Iterator[tuple[Tensor, list[str]]]


def samples(
    model: ImageBART, config: Config, n: int, captions: list[str], indices: range
) -> ImageBatches:
    """Samples `indices` of n: sample i has seed `seed + i` and caption i; without captions the
    classes take turns."""
    conditions = {"prompt": captions[:n]} if captions else {}
    if not captions and "class" in model.conditions:
        conditions["classes"] = [i % class_count(model.conditions) for i in range(n)]
    stream = model.sample_stream(
        n,
        batch=config.batch,
        part=indices,
        output_type="pt",
        **options_given(config, SamplingOptions),
        **conditions,
    )
    for part, images in zip(split(indices, config.batch), stream, strict=True):
        texts = [captions[i] for i in part] if captions else []
        images = (images * 255).round().byte()
        if config.save_images:
            save_images(images, texts, part, config.save_images)
        yield images, texts


def save_images(images: Tensor, captions: list[str], part: range, folder: Path) -> None:
    """Write images as PNG with captions in .txt files beside them, as --images reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in zip(part, rearrange(images, "b c h w -> b h w c").cpu(), strict=True):
        Image.fromarray(image.numpy()).save(folder / f"{i:06d}.png")
    for i, caption in zip(part, captions, strict=False):
        (folder / f"{i:06d}.txt").write_text(caption + "\n", encoding="utf-8")


def pictures(data: Dataset, batch: int, indices: range) -> ImageBatches:
    """The images of a data set and their captions."""
    sizes = set()
    with ThreadPoolExecutor() as readers:
        for part in split(indices, batch):
            items = list(readers.map(data.__getitem__, part))
            sizes |= {tuple(item["image"].shape[1:]) for item in items}
            if len(sizes) > 1:
                raise ValueError(f"all images must have one size, got {sorted(sizes)}")
            images = torch.stack([item["image"] for item in items])
            yield ((images + 1) * 127.5).round().byte(), [item["text"] for item in items]


def open_reference(name: str, n: int, size: tuple[int, int]) -> Dataset:
    return scenery(n, size) if name == "scenery" else ImageFolder(name, size, strict=True)


def scenery(n: int, size: tuple[int, int]) -> Dataset:
    """The test split, unseen in training."""
    return SceneryData("test", size[0], n, width=size[1])


def accumulate(
    metrics: ImageMetrics, batches: ImageBatches, total: int, real: bool = False
) -> None:
    """Update the metrics with every batch; the main rank shows a progress bar."""
    world, what = metrics.ranks.world, "reference" if real else "samples"
    with tqdm(total=total, desc=what, unit="img", disable=not metrics.ranks.is_main) as bar:
        for images, captions in batches:
            metrics.update(images, captions, real)
            bar.update(min(len(images) * world, total - bar.n))


def read_captions(name: str | None, n: int, size: tuple[int, int]) -> list[str]:
    """The prompt of sample i; empty for unconditional sampling."""
    if name is None:
        return []
    if name == "scenery":  # captions omit objects too small to see
        return [item["text"] for item in scenery(n, size)]
    if not Path(name).is_file():
        raise ValueError(f'captions must be a text file or "scenery", got {name}')
    lines = Path(name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


# ------------------------------------------------------------------------------------------------
# The run record


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of all weights in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def line(result: dict) -> str:
    """One line per metric, the standard deviation to two digits."""
    spread = f" ± {result['std']:.2g}" if "std" in result else ""
    return f"{result['name']:<12} {result['value']:.5g}{spread}"


# ------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    check(config)
    begun, ranks = time.time(), start(config.device)
    least = max(MIN_IMAGES, ranks.world)

    # The metrics
    metrics = ImageMetrics(config.metrics, ranks, config.inception, config.clip)
    weights = metrics.weights
    compares = {"fid", "kid"} & {*config.metrics}
    reference = {"source": config.reference if compares else None}
    if compares and is_stats(config.reference):
        metrics.read_stats(Path(config.reference))
        reference |= {"n": metrics.stats_n, "sha256": sha256_of(config.reference)}

    # What is measured
    if config.images:
        data = ImageFolder(config.images, strict=True, count=config.num_images)
        n, batches = len(data), pictures(data, config.batch, part_of(len(data), ranks))
    else:
        model = ImageBART.from_pretrained(config.model, device=ranks.device)
        weights["model"] = {"sha256": weights_sha256(model)}
        captions = read_captions(config.captions, config.num_images or 10_000, model.image_size)
        n = config.num_images or len(captions) or 10_000
        if captions and len(captions) < n:
            raise ValueError(f"{n} samples need as many captions, got {len(captions)}")
        batches = samples(model, config, n, captions, part_of(n, ranks))
    if n < least:
        raise ValueError(f"num_images must be at least {least}, got {n}")

    # The reference, read before sampling so that a bad file is refused at once
    first = next(batches)
    size = tuple(first[0].shape[-2:])
    if compares and not is_stats(config.reference):
        data = open_reference(config.reference, n, size)
        if len(data) < least:
            raise ValueError(f"reference must have at least {least} images, got {len(data)}")
        real = pictures(data, config.batch, part_of(len(data), ranks))
        accumulate(metrics, real, len(data), real=True)
        reference |= {"n": len(data)}
    accumulate(metrics, chain([first], batches), n)

    # The results
    metrics.sync()
    if ranks.is_main:
        results = metrics.compute(config.seed)
        if metrics.digests[True]:
            reference |= {"sha256": metrics.sha256(real=True)}
        report = {
            "metrics": results,
            "samples": {"n": n, "size": size, "sha256": metrics.sha256(real=False)},
            "seeds": None if config.images else [config.seed, config.seed + n - 1],
            "reference": reference,
            "weights": weights,
            "config": {name: plain(value) for name, value in asdict(config).items()},
            "ranks": ranks.world,
            "seconds": round(time.time() - begun, 1),
            **run_record(ranks.device, METRIC_PACKAGES),
        }
        write_json(report, config.out)
        if config.save_stats:
            metrics.save_stats(config.save_stats)
        print(*map(line, results.values()), f"written to {config.out}", sep="\n")
        if not weights.get("inception", {"published": True})["published"]:
            print("not comparable with published figures: Inception's weights are others")
    finish(ranks)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
