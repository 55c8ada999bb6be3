"""A folder of shards (tar files) as a data set, with random access, so that runs resume exactly."""

import io
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from imagebart.arguments import as_int, shown
from imagebart.checkpoint import require_file
from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import read_image
from imagebart.data.listing import in_natural_order, is_image

MOST_CLASSES = 100_000
MOST_TEXT_BYTES = 2**20  # of a .txt or a .cls
MOST_IMAGE_BYTES = 2**28
TAR_BLOCK = tarfile.BLOCKSIZE


class Part(NamedTuple):
    """A file inside a shard."""

    shard: str
    start: int
    length: int


class ShardFolder(ImageFolder):
    """The images in every `*.tar` of a folder: dict(image, class, text), as `ImageFolder`.

    webdataset's layout: files with the same name up to the first dot belong together. `a.jpg` is
    the image, `a.txt` has its captions (one per line), `a.cls` its class, a whole number; endings
    in any case. Hidden files are left out, and images with two endings, such as `a.seg.png`, which
    tell of `a.jpg`. Shards are indexed once and read by offset; they must be uncompressed, whole
    (with tar's end mark), and must not change.
    """

    def _find(self) -> None:
        shards = sorted((path.name for path in self.root.glob("*.tar")), key=in_natural_order)
        self._parts = {name: part for shard in shards for name, part in parts_of(self.root, shard)}
        self.files = self._one_of_each_sample()
        if not self.files:
            raise ValueError(f"{self.root}: its shards must hold images, as a.jpg, got none")
        self.classes = [self._label(name) for name in self.files]
        names = tuple(map(str, range(max(self.classes) + 1)))
        self.names = {"class": names, "map": ()}

    def _one_of_each_sample(self) -> list[str]:
        """The images; ValueError if a sample has two."""
        image_of: dict[str, str] = {}
        for name in filter(is_image, self._parts):
            key = key_of(name)
            if name.removeprefix(key).count(".") > 1:
                continue
            if (first := image_of.setdefault(key, name)) != name:
                both = f"{shown(first, 200)} and {shown(name, 200)}"
                raise ValueError(f"{self.root}: a sample must have one image, got {both}")
        return [*image_of.values()]

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
    path, parts, at, end = root / shard, [], -1, 0
    try:
        require_file(path)
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for one in tar:
                # A negative size leads back to an earlier member, and round for ever.
                if not at < one.offset < one.offset_data <= one.offset_data + one.size <= size:
                    raise tarfile.TarError(f"a member beyond its {size} bytes")
                at = one.offset
                end = one.offset_data + -(-one.size // TAR_BLOCK) * TAR_BLOCK
                hidden = os.path.basename(one.name).startswith(".")
                if one.isreg() and not one.issparse() and not hidden:
                    name = f"{shard}/{with_small_ending(one.name)}"
                    parts.append((name, Part(shard, one.offset_data, one.size)))
        with open(path, "rb") as file:
            file.seek(end)
            if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
                raise tarfile.TarError("no end mark: it was cut")
    except Exception as error:  # a damaged archive may raise anything
        reason = shown(str(error), 200)
        raise ValueError(f"{path}: must be a whole tar file, got {reason}") from error
    return parts


def with_small_ending(name: str) -> str:
    """A file's name, what follows the first dot after its last slash in small letters."""
    key = key_of(name)
    return key + name.removeprefix(key).lower()


def key_of(name: str) -> str:
    """A file's name up to the first dot after its last slash: the key of its sample."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.split(".")[0])
