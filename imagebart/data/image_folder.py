"""A folder of images with captions and semantic maps as a data set."""

import hashlib
import json
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from imagebart.arguments import shown
from imagebart.checkpoint import PathLike, require_file
from imagebart.data.images import (
    Size,
    fit,
    fit_box,
    printable,
    read_image,
    require_size,
    to_rgb,
    to_tensor,
    turn_of,
)
from imagebart.data.listing import (
    MAP,
    captions_of,
    hash_of,
    images_of,
    in_natural_order,
    kinds_of,
)

UNLABELLED = 255
"""In a map's file."""
TURN = "turn"
"""In `Image.info` of a picture: how it was made upright, None if it was."""
ON_THEIR_SIDE = (
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
)
"""Turns that make a width of a height."""
DIGESTED = 1000  # images whose content tells a data set
UNREADABLE = 0.001  # share of the images that training may replace
IN_A_ROW = 50  # consecutive unreadable images mean that the disk or the path is lost


class ImageFolder(Dataset):
    """Every image under `root`, in natural order (2 before 10): dict(image, class, text).

    Class: an index of `names["class"]`, the top-level folders; -1 of an image that is in none.
    Text: `metadata.jsonl` or `metadata.csv` in `root` (file_name, text); else `a.txt` beside
    `a.png`, one caption per line. An item has the first, or ""; `texts(index)` returns all.
    Map: if `map_names.txt` in `root`, or in its parent, names kinds, one per line, every `a.png`
    must have a semantic map `a.map.png` beside it: one channel, whose values are the kinds, 255
    where unlabelled. It must have its image's aspect ratio and is made upright as the image is, see
    `upright_map`. An item's `map` is H×W int64, cropped and resized as its image, -1 where
    unlabelled.

    `size`: as in `fit`; None keeps each image's size. `count` takes that many images, spread evenly
    over the folder.

    An unreadable file is replaced by the next readable one (always the same) and reported once;
    above the share `unreadable` of the images (10 are always allowed), or 50 in a row: ValueError
    with all their names. `strict` raises at the first, for measurements on exactly this set.
    """

    files: list[str]
    classes: list[int]

    def __init__(
        self,
        root: PathLike,
        size: Size | None = None,
        *,
        strict: bool = False,
        count: int | None = None,
        unreadable: float = UNREADABLE,
    ):
        self.root, self.size, self.strict = Path(root), size, strict
        self.unreadable = unreadable
        self._find()
        self._choose(list(range(len(self.files))))
        if count is not None:
            self.take(count)

    def take(self, count: int) -> None:
        """Keep `count` of the images, spread evenly over the folder."""
        n = len(self.files)
        if not 1 <= count <= n:
            raise ValueError(f"{self.root}: count must lie in 1..{n}, got {count}")
        chosen = [i * n // count for i in range(count)]
        self._choose(chosen)

    def keep_split(self, split: str, held_out: float) -> None:
        """Keep a part of the images: for "train" those that are not held out, else those that are.

        The share `held_out` of them is, by a hash of their names (`hash_of`), so that which are
        does not change when others come or go; one at least. ValueError unless both parts have one.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be a share, between 0 and 1, got {held_out}")
        if len(self.files) < 2:
            raise ValueError(
                f"{self.root}: must hold two images, one of them to be held out, got one"
            )
        hashes = [hash_of(name) for name in self.files]
        bound = min(max(held_out, math.nextafter(min(hashes), 1)), max(hashes))
        self._choose([i for i, x in enumerate(hashes) if (x >= bound) == (split == "train")])

    def take_classes(self, names: tuple[str, ...]) -> None:
        """Number the classes as the training images do; ValueError if they have other ones."""
        own, number_of = self.names["class"], {name: i for i, name in enumerate(names)}
        unknown = [name for name in own if name not in number_of]
        if unknown or (names and not own):
            got = ", ".join(map(shown, unknown[:5])) or "none"
            raise ValueError(
                f"{self.root}: classes must be those of the training images, got {got}"
            )
        number = {i: number_of[name] for i, name in enumerate(own)}
        self.classes = [number.get(i, -1) for i in self.classes]
        self.names["class"] = names

    def digest(self) -> str:
        """What the data set is, wherever it lies: the SHA-256 of the names, sizes and classes of
        its files, and of the content and captions of DIGESTED of them, evenly spread."""
        sha, n = hashlib.sha256(), len(self.files)
        for i, name in enumerate(self.files):
            sha.update(os.fsencode(f"{name.replace(os.sep, '/')}\0{self.size_of(i)}\0"))
            sha.update(f"{self.classes[i]}\0".encode())
        for i in sorted({k * n // DIGESTED for k in range(DIGESTED)}):
            with suppress(OSError, ValueError):  # training replaces what cannot be read
                sha.update(self._content(i))
                sha.update(json.dumps(self.texts(i)).encode())
        sha.update(json.dumps(self.names).encode())
        return sha.hexdigest()

    def size_of(self, i: int) -> int:
        """Bytes of a file, -1 if it is not there."""
        try:
            return os.stat(self.root / self.files[i]).st_size
        except OSError:
            return -1

    def _content(self, i: int) -> bytes:
        path = self.root / self.files[i]
        require_file(path)
        return path.read_bytes()

    def _choose(self, chosen: list[int]) -> None:
        self.files = [self.files[i] for i in chosen]
        self.classes = [self.classes[i] for i in chosen]
        # In shared memory, for all data-loading workers.
        self._bad = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()

    def _find(self) -> None:
        """Set `files`, `classes`, `names` of classes and of the kinds of maps, and captions."""
        self.files = images_of(self.root)

        folders = [name.split(os.sep)[0] if os.sep in name else "" for name in self.files]
        names = tuple(sorted(set(folders) - {""}, key=in_natural_order))
        number = {name: i for i, name in enumerate(names)}
        self.classes = [number.get(folder, -1) for folder in folders]

        self.names = {"class": names, "map": kinds_of(self.root)}
        self._texts = captions_of(self.root, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in [0, {len(self)}), got {index}")

        for step in range(min(IN_A_ROW, len(self.files))):
            i = (int(index) + step) % len(self.files)
            if self._bad[i]:
                continue
            try:
                return self._load(i)
            except ValueError as error:
                if self.strict:
                    raise
                self._report(i, error)
        raise ValueError(
            f"{self.root}: one image in {IN_A_ROW} at least must be readable, "
            f"got none from {printable(self.files[index])} on"
        )

    def texts(self, index: int) -> list[str]:
        """Every caption of an image, none if it has none; ValueError if its text is not UTF-8."""
        name = self.files[index]
        if self._texts is not None:
            return self._texts.get(name, [])
        for ending in (".txt", ".TXT"):
            path = (self.root / name).with_suffix(ending)
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{printable(path)}: must be UTF-8 text, got {error}") from error
            return [line.strip() for line in lines if line.strip()]
        return []

    def _load(self, i: int) -> dict:
        picture = self.picture(i)
        image = picture if self.size is None else fit(picture, self.size)
        text = (self.texts(i) or [""])[0]
        item = {"image": to_tensor(image), "class": self.classes[i], "text": text}
        if self.names["map"]:
            item["map"] = self.map_of(i, picture)
        return item

    def picture(self, i: int) -> Image.Image:
        """An image at its own size; ValueError if it cannot be read."""
        return read_image(self.root / self.files[i], convert=to_rgb_and_turn)

    def map_of(self, i: int, picture: Image.Image) -> np.ndarray:
        """The kinds (H, W) of the map of an image, which `picture` gave, -1 where unlabelled.

        ValueError if it cannot be read, has another aspect ratio than the picture or unknown kinds.
        """
        path = (self.root / self.files[i]).with_suffix(MAP)
        try:
            image = upright_map(read_map(path), picture)
            if self.size is not None:
                height, width = (self.size,) * 2 if isinstance(self.size, int) else self.size
                box = fit_box(image.size, (height, width))
                image = image.resize((width, height), Image.Resampling.NEAREST, box=box)
            return kinds_in(image, len(self.names["map"]))
        except ValueError as error:
            raise ValueError(f"{printable(path)}: {error}") from error

    @property
    def unreadable_files(self) -> list[str]:
        """The files that could not be read until now, by any worker, as printable text."""
        return [printable(self.files[i]) for i in self._bad.nonzero().flatten().tolist()]

    def _report(self, i: int, error: ValueError) -> None:
        self._bad[i] = True
        bad, allowed = self.unreadable_files, max(10, int(self.unreadable * len(self.files)))
        if len(bad) > allowed:
            raise ValueError(
                f"{self.root}: at most {allowed} of {len(self.files)} images may be unreadable, "
                f"got {len(bad)}: {', '.join(bad)}; the last: {error}; "
                "`python -m imagebart data` lists all"
            )
        warnings.warn(f"{error}; the next image takes its place", stacklevel=3)


# ── a map beside an image ─────────────────────────────────────────────────────────────────────


def to_rgb_and_turn(image: Image.Image) -> Image.Image:
    """`to_rgb`, and what made the image upright in `info[TURN]`."""
    tiff = image.format == "TIFF"  # Pillow turns it as it decodes it
    before = turn_of(image) if tiff else None
    rgb = to_rgb(image)
    rgb.info[TURN] = before if tiff else turn_of(image)
    return rgb


def read_map(path: Path) -> Image.Image:
    """The semantic map in a file, as it is stored; ValueError if it is no PNG of one channel."""
    image: Image.Image
    try:
        with Image.open(path, formats=("PNG",)) as image:
            require_size(image)
            image.load()
    except Exception as error:  # as in `read_image`
        raise ValueError(f"must be a map, a PNG, got {shown(str(error), 200)}") from error
    if len(image.getbands()) != 1:
        raise ValueError(f"must have one channel, got {image.mode}")
    return image


def upright_map(image: Image.Image, picture: Image.Image) -> Image.Image:
    """A map, upright as its picture (of `to_rgb_and_turn`).

    A map that has an EXIF orientation of its own is turned by that. Another one that has the shape
    of the picture's file is turned as the picture was: where a turn leaves the shape as it is, a
    map without an orientation is taken to lie as the file does. ValueError unless the map then has
    the picture's aspect ratio.
    """
    own, turn = turn_of(image), picture.info[TURN]
    stored = picture.size[::-1] if turn in ON_THEIR_SIDE else picture.size
    if own is None and is_scaled(image.size, stored):
        own = turn
    upright = image if own is None else image.transpose(own)
    if not is_scaled(upright.size, picture.size):
        (W, H), (w, h) = picture.size, upright.size
        raise ValueError(f"must have the aspect ratio of its image, {W}×{H}, got {w}×{h}")
    return upright


def is_scaled(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other (width, height) at another scale, its sides rounded."""
    (w, h), (W, H) = size, other
    return abs(w * H - W * h) < max(w + h, W + H)


def kinds_in(image: Image.Image, count: int) -> np.ndarray:
    """The kinds (H, W) of a map, int64, -1 where unlabelled; ValueError for one beyond `count`."""
    kinds = np.array(image).astype(np.int64)
    kinds[kinds == UNLABELLED] = -1
    if (most := kinds.max()) >= count:
        raise ValueError(
            f"kinds must lie in [0, {count}), or be {UNLABELLED} where unlabelled, got {most}"
        )
    return kinds
