"""What is measured: images by their numbers, of a model, a folder, a .npz, or scenery.

samples         a model's; of several draws for each, the best
open_pictures   a folder's, a .npz's or scenery's, as a data set; `pictures` reads some
Kept            where samples are written
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from metrics import read_npz
from PIL import Image
from records import Run
from torch import Tensor
from torch.utils.data import Dataset

from imagebart import ImageBART
from imagebart.checkpoint import atomic_write, sha256_of
from imagebart.conditions import class_count
from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import to_bytes
from imagebart.data.sources import SceneryData
from imagebart.options import SamplingOptions, options_given
from imagebart.probe import ATTRIBUTES, Probe
from imagebart.ranking import CLIP

Batch = tuple[Tensor, list[str], list[str]]
"""Images, their captions, the names of their classes ("" for none): each data set and each model
numbers its classes for itself."""
Source = Callable[[list[int]], Batch]
"""Images by their numbers."""


def draws(config) -> int:
    """Draws for one sample."""
    return config.candidates if config.captions else round(1 / config.rejection_rate)


def samples(
    model: ImageBART,
    judge: CLIP | Probe | None,
    config,
    captions: list[str],
    at: list[int],
) -> Batch:
    """Samples `at`: sample i has seed `seed + i` and caption i; without captions the classes take
    turns. Of several draws for each the judge keeps the best."""
    c, conditions = draws(config), {}
    each = [i for i in at for _ in range(c)]
    classes = [""] * len(at)
    if captions:
        conditions["prompt"] = [captions[i] for i in each]
    elif "class" in model.conditions:
        names = names_of_classes(model)
        conditions["classes"] = [i % len(names) for i in each]
        classes = [names[i % len(names)] for i in at]
    options = options_given(config, SamplingOptions)
    options["seed"] = [config.seed + c * i + k for i in at for k in range(c)]
    images = model.sample(len(each), output_type="pt", **options, **conditions)
    images = (images * 255).round().byte().cpu()
    if c > 1:
        scores = judged(judge, model, images, conditions).reshape(len(at), c)
        images = images[scores.argmax(1) + c * torch.arange(len(at))]
    return images, [captions[i] for i in at] if captions else [""] * len(at), classes


def names_of_classes(model: ImageBART) -> list[str]:
    """The names of a class model's classes, in its order; "" for each if it does not say them."""
    return [*model.names.get("class", ())] or [""] * class_count(model.conditions)


def kind_number(name: str) -> int:
    """The probe's number of the class called `name`; ValueError if it does not know it."""
    if name not in ATTRIBUTES["kind"]:
        raise ValueError(f"a class must be a kind of scenery, got {name or 'none'}")
    return ATTRIBUTES["kind"].index(name)


def judged(judge: CLIP | Probe, model: ImageBART, images: Tensor, conditions: dict) -> Tensor:
    """How well every draw fits: similarity to its caption, or the probability of its class."""
    if "prompt" in conditions:
        return judge(images, conditions["prompt"]).cpu()
    names = names_of_classes(model)
    kinds = [kind_number(names[k]) for k in conditions["classes"]]
    probabilities = judge.predict(images).attributes["kind"]
    return probabilities.gather(1, torch.tensor(kinds)[:, None])[:, 0]


def pictures(data: Dataset, at: list[int], size: tuple[int, int] | None = None) -> Batch:
    """The images of a data set, their captions and classes; ValueError unless all have one size,
    `size`."""
    with ThreadPoolExecutor() as readers:
        items = list(readers.map(data.__getitem__, at))
    sizes = sorted({tuple(item["image"].shape[1:]) for item in items} | ({size} - {None}))
    if len(sizes) > 1:
        raise ValueError(f"all images must have one size, got {sizes}")
    images = torch.stack([item["image"] for item in items])
    texts = [item["text"] for item in items]
    classes = [class_name(data, item["class"]) for item in items]
    return to_bytes(images), texts, classes


def class_name(data: Dataset, number: int) -> str:
    """The name of a data set's class; "" for -1, no class."""
    return data.names["class"][number] if number >= 0 else ""


class Stored(Dataset):
    """The images of a .npz of arr_0 (n, H, W, 3), uint8, as guided-diffusion has them."""

    def __init__(self, path: Path, size: tuple[int, int] | None = None):
        arrays = read_npz(path)
        found = arrays.get("arr_0")
        if found is None or found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3:
            got = {name: f"{x.dtype} {x.shape}" for name, x in arrays.items()}
            raise ValueError(f"{path} must hold arr_0, uint8 n×H×W×3, got {got}")
        if size and found.shape[1:3] != size:
            raise ValueError(f"{path}: images must be of {size}, got {found.shape[1:3]}")
        self.images, self.classes = found, [-1] * len(found)  # arr_1 numbers them without names
        self.path = path

    def digest(self) -> str:
        return sha256_of(self.path)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        image = rearrange(torch.from_numpy(self.images[i]).float() / 127.5 - 1, "h w c -> c h w")
        return {"image": image, "text": "", "class": -1}


def open_pictures(name: str | Path, n: int | None, size: tuple[int, int] | None) -> Dataset:
    """Images by name: of `size`, where they are resized; n of them, if it is given."""
    if name == "scenery":
        return scenery(n, size)
    if is_npz(name):
        return Stored(Path(name), size)
    return ImageFolder(name, size, strict=True, count=None if size else n)


def scenery(n: int, size: tuple[int, int]) -> Dataset:
    """The test split, unseen in training."""
    return SceneryData("test", size[0], n, width=size[1])


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


class Kept:
    """Where samples are kept: PNG with captions in .txt files beside them, as --images reads them,
    or one .npz of arr_0 at the end."""

    def __init__(self, path: Path, n: int, size: tuple[int, int], run: Run):
        self.path, self.rows = path, None
        if is_npz(path):
            self.rows = run.rows("images", n, {"image": ("u1", 3 * size[0] * size[1])})
            self.shape = (n, *size, 3)
        else:
            path.mkdir(parents=True, exist_ok=True)

    def put(self, images: Tensor, captions: list[str], at: list[int]) -> None:
        pixels = rearrange(images, "b c h w -> b h w c").numpy()
        if self.rows is not None:
            self.rows.put(at, image=pixels.reshape(len(at), -1))
            return
        for i, image, caption in zip(at, pixels, captions, strict=True):
            Image.fromarray(image).save(self.path / f"{i:06d}.png")
            if caption:
                (self.path / f"{i:06d}.txt").write_text(caption + "\n", encoding="utf-8")

    def close(self) -> None:
        if self.rows is not None:
            with atomic_write(self.path) as draft, draft.open("wb") as file:
                np.savez(file, self.rows["image"].reshape(self.shape))


def is_npz(name: str | Path | None) -> bool:
    return str(name).endswith(".npz")


def holds_images(reference: str) -> bool:
    return "arr_0" in read_npz(Path(reference))


def kept_as(source: Source, kept: Kept, at: list[int]) -> Batch:
    """The images of a source, written as well."""
    batch = source(at)
    kept.put(batch[0], batch[1], at)
    return batch
