"""Data sets by name: scenery, a folder of images, or a folder of shards (tar files).

open_data      opens a split of the data set of a name
ShardFolder    webdataset's layout with random access, so that runs resume exactly
"""

import io
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from imagebart.arguments import as_int, shown
from imagebart.checkpoint import require_file
from imagebart.data.images import (
    UNREADABLE,
    ImageFolder,
    PathLike,
    SceneryData,
    Size,
    in_natural_order,
    is_image,
    read_image,
)

MOST_CLASSES = 100_000
MOST_TEXT_BYTES = 2**20  # of a .txt or a .cls
MOST_IMAGE_BYTES = 2**28

SCENERY_COUNTS = {"train": 60_000}  # default number of images of a split; others 5000


SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""What the folders of a split are usually called, in any case."""

HELD_OUT = 0.02
"""Share of a folder without splits that is its validation split."""


def open_data(
    name: PathLike,
    size: Size | None,
    split: str = "train",
    at_most: int | None = None,
    *,
    strict: bool = False,
    held_out: float = HELD_OUT,
    unreadable: float = UNREADABLE,
) -> Dataset:
    """The data set called `name`: "scenery", a folder of images, or a folder of tar files of them.

    A folder with a sub-folder `train` has splits: its sub-folders by their usual names, see
    `SPLIT_FOLDERS`. Without one for validation, and in a folder without splits, `held_out` of the
    training images are the validation split (`ImageFolder.keep_split`). Classes are numbered as in
    training. `unreadable` is the share of the images that may be, see `ImageFolder`.
    At most `at_most` images are taken (at least one), spread evenly over a folder; None takes all.
    ValueError if there are no images, or their classes or maps are not those of training.
    """
    if name == "scenery":
        if not isinstance(size, int):
            raise ValueError(f"scenery must have one size, got {size}")
        count = SCENERY_COUNTS.get(split, 5000) if at_most is None else at_most
        return SceneryData(split, size, count)

    root = Path(name)
    train = find_split(root, "train")
    own = find_split(root, split) if train else None
    if train and not own and split != "validation":
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
    """All images of a folder, or of its shards."""
    kind = ShardFolder if root.is_dir() and any(root.glob("*.tar")) else ImageFolder
    return kind(root, size, strict=strict, unreadable=unreadable)


def summary_of(data: SceneryData | ImageFolder) -> str:
    """What a data set has, in a line: images, classes, images without one."""
    names, classes = data.names.get("class", ()), getattr(data, "classes", [])
    parts = [f"{len(data):,} images"] + ([f"{len(names)} classes"] if names else [])
    without = sum(number < 0 for number in classes) if names else 0
    return ", ".join(parts + ([f"{without} of them in no class"] if without else []))


class Part(NamedTuple):
    """A file inside a shard."""

    shard: str
    start: int
    length: int


class ShardFolder(ImageFolder):
    """The images in every `*.tar` of a folder: dict(image, class, text), as `ImageFolder`.

    webdataset's layout: files with the same name up to the first dot belong together. `a.jpg` is
    the image, `a.txt` has its captions (one per line), `a.cls` its class, a whole number. Shards
    are indexed once and read by offset; they must be uncompressed and must not change.
    """

    def _find(self) -> None:
        shards = sorted((path.name for path in self.root.glob("*.tar")), key=in_natural_order)
        self._parts = {name: part for shard in shards for name, part in parts_of(self.root, shard)}
        self.files = [name for name in self._parts if is_image(name)]
        if not self.files:
            raise ValueError(f"{self.root}: its shards must hold images, got none")
        self.classes = [self._label(name) for name in self.files]
        names = tuple(map(str, range(max(self.classes) + 1)))
        self.names = {"class": names, "map": ()}

    def texts(self, index: int) -> list[str]:
        """Every caption of an image, none if it has none; ValueError if its text is not UTF-8."""
        text = self._text(self.files[index], ".txt") or ""
        return [line.strip() for line in text.splitlines() if line.strip()]

    def picture(self, i: int) -> Image.Image:
        return read_image(self.root / self.files[i], io.BytesIO(self._bytes(self.files[i])))

    def size_of(self, i: int) -> int:
        return self._parts[self.files[i]].length

    def _content(self, i: int) -> bytes:
        return self._bytes(self.files[i])

    def _label(self, image: str) -> int:
        """The class in an image's .cls, -1 if it has none."""
        text = self._text(image, ".cls")
        if text is None:
            return -1
        digits = text.strip()
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
            raise ValueError(f"{self.root}: a .cls must hold a whole number, got {shown(digits)}")
        return as_int(int(digits), f"{self.root}: a .cls", most=MOST_CLASSES - 1)

    def _text(self, image: str, ending: str) -> str | None:
        """The text that belongs to an image; None if there is none."""
        name = key_of(image) + ending
        if name not in self._parts:
            return None
        try:
            return self._bytes(name, MOST_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            where = shown(str(self.root / name), 300)
            raise ValueError(f"{where}: must be UTF-8 text, got {error.reason}") from error

    def _bytes(self, name: str, most: int = MOST_IMAGE_BYTES) -> bytes:
        shard, start, length = self._parts[name]
        if length > most:
            where = shown(str(self.root / name), 300)
            raise ValueError(f"{where}: must be at most {most} bytes, got {length}")
        with open(self.root / shard, "rb") as file:
            file.seek(start)
            return file.read(length)


def parts_of(root: Path, shard: str) -> list[tuple[str, Part]]:
    """(shard/name, location) of every file of a shard; ValueError if one lies outside of it."""
    path, parts, at = root / shard, [], -1
    try:
        require_file(path)
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for one in tar:
                # A negative size leads back to an earlier member, and round for ever.
                if not at < one.offset < one.offset_data <= one.offset_data + one.size <= size:
                    raise tarfile.TarError(f"a member beyond its {size} bytes")
                at = one.offset
                if one.isreg() and not one.issparse():
                    parts.append((f"{shard}/{one.name}", Part(shard, one.offset_data, one.size)))
    except Exception as error:  # a damaged archive may raise anything
        reason = shown(str(error), 200)
        raise ValueError(f"{path}: must be a whole tar file, got {reason}") from error
    return parts


def key_of(name: str) -> str:
    """A file's name up to the first dot after its last slash: the key of its sample."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.split(".")[0])
