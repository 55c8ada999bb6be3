"""Image data sets: folders with captions and maps, and scenery.

to_rgb, fit, to_tensor     any image → RGB → size → b 3 H W in [-1, 1]
ImageFolder, SceneryData   data sets of dict(image, class, text, and map if there are maps)
Batches                    indices of the images of step s: a pure function of (seed, s)
"""

import csv
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from imagebart.arguments import shown
from imagebart.checkpoint import PathLike, require_file
from imagebart.data import scenery

Size = int | tuple[int, int]

# ── Pictures ──────────────────────────────────────────────────────────────────────────────────

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # the only decoders used
MAX_PIXELS = 64_000_000  # a small file may decompress to gigabytes
MAX_SIDE = 2**15  # a row costs memory of its own

MAP = ".map.png"  # suffix of the semantic map beside an image
UNLABELLED = 255  # in a map's file

ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF tag; value → transpose that makes the pixels upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: PathLike,
    file: BinaryIO | None = None,
    convert: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """The image in a file, as RGB; ValueError naming the file if it cannot be decoded.

    `file` has the bytes if they are stored elsewhere; `convert` replaces `to_rgb`.
    """
    try:
        with Image.open(file or path, formats=FORMATS) as image:
            require_size(image)
            return (convert or to_rgb)(image)
    except Exception as error:  # decoders raise any exception on a broken file
        reason = shown(str(error), 200)
        raise ValueError(f"{printable(path)}: must be a readable image, got {reason}") from error


def require_size(image: Image.Image) -> None:
    """ValueError for an image that costs too much to decode; only its header is read."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise ValueError(
            f"{image.width}×{image.height} pixels, at most {MAX_PIXELS} and {MAX_SIDE} a side fit"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, upright, without EXIF (so it is not rotated twice).

    The first frame of an animation; EXIF orientation applied; 16-bit grey scaled, not clipped;
    transparency composited on white; grey, palette and CMYK converted. ValueError for float pixels
    and integers beyond 16 bits, whose range is unknown, and for images without pixels.
    """
    if not isinstance(image, Image.Image) or 0 in image.size:
        got = f"{image.width}×{image.height}" if isinstance(image, Image.Image) else type(image)
        raise ValueError(f"an image must be a PIL image of a pixel at least, got {got}")
    if getattr(image, "is_animated", False):
        image.seek(0)
    image.load()
    turn = turn_of(image)

    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return Image.fromarray(np.asarray(image if turn is None else image.transpose(turn)))


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """The transpose of the EXIF orientation; None for upright images."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # invalid EXIF is ignored, the pixels are valid
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey 0 .. 65535 → 0 .. 255, rounded; other modes unchanged."""
    if image.mode == "F":
        raise ValueError("pixels must be integers, got floats (mode F)")
    if not image.mode.startswith("I"):
        return image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey must lie in 0..65535, got {values.min()}..{values.max()}")
    grey = (values + 128) // 257
    if "transparency" in image.info:  # the grey value that means transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Centre crop to the aspect ratio of `size` (a side, or (height, width)), resized to it."""
    height, width = (size, size) if isinstance(size, int) else size
    box = fit_box(image.size, (height, width))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def fit_box(
    image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The crop of `fit` for an image of `image_size` (width, height) and `size` (height, width).

    (left, top, right, bottom) in pixels of the image.
    """
    (W, H), (height, width) = image_size, size
    scale = min(W / width, H / height)
    left = max(0.0, (W - scale * width) / 2)  # rounding may give -1e-14
    top = max(0.0, (H - scale * height) / 2)
    return left, top, W - left, H - top


def to_tensor(image: Image.Image | Sequence[Image.Image]) -> Tensor:
    """x_0 of one RGB image (3 H W), or of several of one size (b 3 H W), float32 in [-1, 1]."""
    if not isinstance(image, Image.Image):
        return torch.stack([to_tensor(each) for each in image])
    return _to_tensor(np.asarray(image))


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(rearrange(pixels, "H W c -> c H W") / np.float32(127.5) - 1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """PIL images of x_0 (b 3 H W, or 3 H W): clamped to [-1, 1], rounded to 256 levels."""
    batch = images if images.dim() == 4 else images[None]
    levels = ((batch.detach().float() + 1) * 127.5).round().clamp(0, 255)
    pixels = rearrange(levels.to("cpu", torch.uint8), "b c H W -> b H W c").numpy()
    return [Image.fromarray(each) for each in pixels]


# ── Data sets ─────────────────────────────────────────────────────────────────────────────────

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
    where unlabelled. An item's `map` is H×W int64, cropped and resized as its image, -1 where
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
        own = self.names["class"]
        unknown = [name for name in own if name not in names]
        if unknown or (names and not own):
            got = ", ".join(map(shown, unknown[:5])) or "none"
            raise ValueError(
                f"{self.root}: classes must be those of the training images, got {got}"
            )
        number = {i: names.index(name) for i, name in enumerate(own)}
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
        self.files = _images(self.root)

        folders = [name.split(os.sep)[0] if os.sep in name else "" for name in self.files]
        names = tuple(sorted(set(folders) - {""}, key=in_natural_order))
        number = {name: i for i, name in enumerate(names)}
        self.classes = [number.get(folder, -1) for folder in folders]

        self.names = {"class": names, "map": _map_names(self.root)}
        self._texts = _metadata(self.root, self.files)

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
        path = (self.root / name).with_suffix(".txt")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{printable(path)}: must be UTF-8 text, got {error}") from error
        return [line.strip() for line in lines if line.strip()]

    def _load(self, i: int) -> dict:
        image = self.picture(i)
        if self.size is not None:
            image = fit(image, self.size)
        text = (self.texts(i) or [""])[0]
        item = {"image": to_tensor(image), "class": self.classes[i], "text": text}
        if self.names["map"]:
            item["map"] = self.map_of(i)
        return item

    def picture(self, i: int) -> Image.Image:
        """An image at its own size; ValueError if it cannot be read."""
        return read_image(self.root / self.files[i])

    def map_of(self, i: int) -> np.ndarray:
        """The kinds (H, W) of an image's map, -1 where unlabelled; ValueError as `picture`."""
        path = (self.root / self.files[i]).with_suffix(MAP)
        image: Image.Image
        try:
            with Image.open(path, formats=("PNG",)) as image:
                require_size(image)
                image.load()
        except Exception as error:  # as in `read_image`
            reason = shown(str(error), 200)
            raise ValueError(f"{printable(path)}: must be a map, a PNG, got {reason}") from error
        if len(image.getbands()) != 1:
            raise ValueError(f"{printable(path)}: must have one channel, got {image.mode}")
        if self.size is not None:
            height, width = (self.size,) * 2 if isinstance(self.size, int) else self.size
            box = fit_box(image.size, (height, width))
            image = image.resize((width, height), Image.Resampling.NEAREST, box=box)
        kinds = np.array(image).astype(np.int64)
        kinds[kinds == UNLABELLED] = -1
        if kinds.max() >= len(self.names["map"]):
            raise ValueError(
                f"{printable(path)}: kinds must lie in [0, {len(self.names['map'])}), or be "
                f"{UNLABELLED} where unlabelled, got {kinds.max()}"
            )
        return kinds

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


class SceneryData(Dataset):
    """The first `count` landscapes of a split of `scenery`: dict(image, class, text, map).

    `size` is their height, and their width unless `width` is given.
    """

    def __init__(self, split: str, size: int, count: int, width: int | None = None):
        if count < 1:
            raise ValueError(f"scenery: count must be at least 1, got {count}")
        self.split, self.height, self.width, self.count = split, size, width or size, count
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
        seed = scenery.scene_seed(self.split, int(index))
        scene = scenery.render(seed, self.height, self.width)
        return {
            "image": _to_tensor(scene.image),
            "class": self.names["class"].index(scene.kind),
            "text": scene.caption,
            "map": scene.semantic_map,
        }


def _images(root: Path) -> list[str]:
    """The images under `root`, relative to it, in natural order; ValueError if there are none."""
    try:
        found = [os.path.relpath(path, root) for path in files_below(os.fspath(root))]
    except OSError as error:
        raise ValueError(f"{root}: must be a folder that can be read, got {error}") from error
    images = [name for name in found if is_image(name)]
    if not images:
        raise ValueError(f"{root}: must hold images ({' '.join(EXTENSIONS)}), got none")
    return sorted(images, key=in_natural_order)


def is_image(name: str) -> bool:
    """Whether a file is an image by its name: not a map, and not hidden."""
    wanted = name.lower().endswith(EXTENSIONS) and not name.endswith(MAP)
    return wanted and not os.path.basename(name).startswith(".")


def files_below(folder: str, above: tuple = ()) -> Iterator[str]:
    """Every visible file under `folder`; links are followed, cycles are not."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            folder_like = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if folder_like:
                yield from files_below(entry.path, (*above, here))
            else:
                yield entry.path


def _map_names(root: Path) -> tuple[str, ...]:
    """The names of a map's kinds, none if there are no maps; ValueError if they are unreadable."""
    for path in (root / "map_names.txt", root.parent / "map_names.txt"):
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{printable(path)}: must be UTF-8 text, got {error}") from error
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def in_natural_order(name: str) -> tuple:
    """Sort key: a2 before a10, folder by folder; ties (a1, a01) by the name itself."""
    parts = name.split(os.sep)
    split = [re.split(r"(\d+)", part) for part in parts]
    return [[int(s) if s.isdecimal() else s for s in part] for part in split], name


def hash_of(name: str) -> float:
    """A number in [0, 1), evenly spread, that a name always has: its SHA-256."""
    digest = hashlib.sha256(os.fsencode(name.replace(os.sep, "/"))).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _metadata(root: Path, files: list[str]) -> dict[str, list[str]] | None:
    """Captions by file name from metadata.jsonl or metadata.csv; None if there is neither.

    A row whose text is null, or missing at its end, names an image without a caption.
    """
    for name, rows_of in (("metadata.jsonl", _jsonl_rows), ("metadata.csv", _csv_rows)):
        path = root / name
        if not path.exists():
            continue
        texts: dict[str, list[str]] = {}
        try:
            for row in rows_of(path):
                said = texts.setdefault(os.path.normpath(row["file_name"]), [])
                if not isinstance(row["text"], str | None):
                    raise TypeError(f"a text must be a string, got {type(row['text']).__name__}")
                said += [] if row["text"] is None else [row["text"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
            reason = shown(repr(error), 200)
            raise ValueError(f"{path}: rows must have file_name and text, got {reason}") from error
        if texts.keys().isdisjoint(files):
            raise ValueError(f"{path}: file_name must be relative to {root}, got none that is")
        return texts
    return None


def _jsonl_rows(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _csv_rows(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def printable(path: PathLike) -> str:
    """A path as printable text, whatever its bytes."""
    return shown(os.fsencode(path).decode("utf-8", "replace"), 300)


# ── Batches ───────────────────────────────────────────────────────────────────────────────────


class Batches(Sampler):
    """Indices of the images of each step: step s is a pure function of (seed, s).

    Epoch e is a permutation of the `count` images drawn from (seed, e); batches continue across
    epochs, so every image is used once per epoch. `steps` is the length of the whole run and
    `start_step` the first step of this process, so a resumed run uses the same batches. `part` is
    this rank's slice of a global batch (`share`): the global batch does not depend on the number of
    ranks.

        DataLoader(data, batch_sampler=Batches(...))    or    tokens.batch(batches.at(step))
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int = 0,
        start_step: int = 0,
        steps: int = 1,
        part: slice = slice(None),
    ):
        if count < 1 or batch < 1:
            raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")
        if not 0 <= start_step <= steps:
            raise ValueError(f"start_step must lie in [0, steps], got {start_step} of {steps}")
        self.count, self.batch, self.seed, self.part = count, batch, seed, part
        self.start_step, self.steps = start_step, steps
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            yield self.at(step).tolist()

    def at(self, step: int) -> np.ndarray:
        """This rank's images of step `step`, int64."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)[self.part]
        epochs, places = np.divmod(places, self.count)
        parts = [self._order_of(e)[places[epochs == e]] for e in np.unique(epochs).tolist()]
        return np.concatenate(parts)

    def _order_of(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch; the last one is cached."""
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, generator.permutation(self.count)
        return self._order
