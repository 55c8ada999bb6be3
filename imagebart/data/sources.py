"""Data sets by name: scenery; a folder of images, of shards (tar files), or of LSUN; an address.

open_data      opens a split of the data set of a name
SceneryData    scenery as a data set
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from imagebart.checkpoint import PathLike
from imagebart.data import scenery
from imagebart.data.image_folder import UNREADABLE, ImageFolder
from imagebart.data.images import Size, to_tensor
from imagebart.data.lsun import LMDB, LmdbFolder
from imagebart.data.painted import Painted
from imagebart.data.remote import fetched, is_remote
from imagebart.data.shards import ShardFolder

SCENERY_COUNTS = {"train": 60_000}  # default number of images of a split; others 5000

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""What the folders of a split are usually called, in any case."""

HELD_OUT = 0.02
"""Share of a folder without splits that is its validation split."""


class SceneryData(Dataset):
    """The first `count` landscapes of a split of `scenery`: dict(image, class, text, map).

    `size` is their height, and their width unless `width` is given. In a folder `keep` each scene
    is kept once it is painted (`Painted`).
    """

    def __init__(
        self,
        split: str,
        size: int,
        count: int,
        width: int | None = None,
        keep: PathLike | None = None,
    ):
        if count < 1:
            raise ValueError(f"scenery: count must be at least 1, got {count}")
        self.split, self.height, self.width, self.count = split, size, width or size, count
        self.painted = None if keep is None else Painted(keep, split, count, size, self.width)
        self.names = {"class": tuple(scenery.KINDS), "map": scenery.LABELS}

    def digest(self) -> str:
        """What the data set is: the SHA-256 of its options and of its first scene."""
        sha = hashlib.sha256(f"{self.split} {self.height} {self.width} {self.count}".encode())
        sha.update(self[0]["image"].numpy().tobytes())
        return sha.hexdigest()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.count:
            raise IndexError(f"index must lie in [0, {self.count}), got {index}")
        image, semantic_map, caption, kind = self._scene(int(index))
        pixels = to_tensor(Image.fromarray(image))
        return {"image": pixels, "class": kind, "text": caption, "map": semantic_map}

    def _scene(self, index: int) -> tuple[np.ndarray, np.ndarray, str, int]:
        """Image, semantic map, caption and number of the class of a scene."""
        if self.painted is not None and (kept := self.painted[index]) is not None:
            return kept
        seed = scenery.scene_seed(self.split, index)
        scene = scenery.render(seed, self.height, self.width)
        kind = self.names["class"].index(scene.kind)
        of_scene = scene.image, scene.semantic_map, scene.caption, kind
        if self.painted is not None:
            self.painted.keep(index, *of_scene)
        return of_scene


def open_data(
    name: PathLike,
    size: Size | None,
    split: str = "train",
    at_most: int | None = None,
    *,
    strict: bool = False,
    held_out: float = HELD_OUT,
    unreadable: float = UNREADABLE,
    keep: PathLike | None = None,
) -> Dataset:
    """The data set called `name`: "scenery", a folder of images, of tar files of them, of LSUN's
    lmdb, or the address of tar files, which are fetched first (`fetched`).

    A folder with a sub-folder `train` has splits: its sub-folders by their usual names, see
    `SPLIT_FOLDERS`. Without one for validation, and in a folder without splits, `held_out` of the
    training images are the validation split (`ImageFolder.keep_split`); any other has its folder.
    Classes are numbered as in training. `unreadable` is the share of the images that may be, see
    `ImageFolder`.
    At most `at_most` images are taken (at least one), spread evenly over a folder; None takes all.
    Of scenery, what is painted is kept in the folder `keep`; other images lie in files already.
    ValueError if there is no such split, if it has no images, or if their classes or maps are not
    those of training.
    """
    if name == "scenery":
        if not isinstance(size, int):
            raise ValueError(f"scenery must have one size, got {size}")
        count = SCENERY_COUNTS.get(split, 5000) if at_most is None else at_most
        return SceneryData(split, size, count, keep=keep)

    root = fetched(str(name)) if is_remote(str(name)) else Path(name)
    train = find_split(root, "train")
    if not train and (alone := find_split(root, "validation") or find_split(root, "test")):
        raise ValueError(f"{root}: must have a folder train beside {alone.name}, got none")
    own = find_split(root, split) if train else None
    if not own and split not in ("train", "validation"):
        raise ValueError(f"{root}: must have a folder {split}, got none")
    data = open_folder(own or train or root, size, strict, unreadable)
    if train and own and split != "train":
        trained = open_folder(train, size)
        data.take_classes(trained.names["class"])
        if data.names["map"] != trained.names["map"]:
            raise ValueError(f"{data.root}: kinds of maps must be those of {train}, got others")
    if not (own and (split != "train" or find_split(root, "validation"))):
        data.keep_split(split, held_out)
    if at_most is not None:
        data.take(min(at_most, len(data.files)))
    return data


def find_split(root: Path, split: str) -> Path | None:
    """The folder of a split in `root`; None if there is none."""
    names = SPLIT_FOLDERS.get(split, (split,))
    if not root.is_dir():
        return None
    with os.scandir(root) as entries:
        found = [entry.name for entry in entries if entry.name.lower() in names and entry.is_dir()]
    return root / min(found, key=lambda name: (names.index(name.lower()), name)) if found else None


def open_folder(
    root: Path, size: Size | None, strict: bool = False, unreadable: float = UNREADABLE
) -> ImageFolder:
    """All images of a folder, of its shards, or of its lmdb."""
    kind: type[ImageFolder] = ImageFolder
    if (root / LMDB).is_file():
        kind = LmdbFolder
    elif root.is_dir() and any(root.glob("*.tar")):
        kind = ShardFolder
    return kind(root, size, strict=strict, unreadable=unreadable)


def summary_of(data: SceneryData | ImageFolder) -> str:
    """What a data set has, in a line: images, classes, images without one."""
    names, classes = data.names.get("class", ()), getattr(data, "classes", [])
    parts = [f"{len(data):,} images"] + ([f"{len(names)} classes"] if names else [])
    without = sum(number < 0 for number in classes) if names else 0
    return ", ".join(parts + ([f"{without} of them in no class"] if without else []))
