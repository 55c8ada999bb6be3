"""What is in a folder of images: its images and their order, their captions, the kinds of maps.

images_of          the images, relative to the folder
captions_of        captions by file name, from a table
kinds_of           names of the kinds of semantic maps
"""

import csv
import hashlib
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from imagebart.arguments import shown
from imagebart.data.images import printable

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"),
    *(".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)

MAP = ".map.png"
"""Suffix of the semantic map beside an image."""


def images_of(root: Path) -> list[str]:
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


def kinds_of(root: Path) -> tuple[str, ...]:
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


def captions_of(root: Path, files: list[str]) -> dict[str, list[str]] | None:
    """Captions by file name from metadata.jsonl or metadata.csv; None if there is neither.

    A row whose text is null, or missing at its end, names an image without a caption. A row names
    the image with exactly its file_name, else the only one with it but for case, slashes and the
    way accents are written (`plain_name`); rows that name none are counted in a warning.
    """
    for name, rows_of in (("metadata.jsonl", _jsonl_rows), ("metadata.csv", _csv_rows)):
        path = root / name
        if not path.exists():
            continue
        texts: dict[str, list[str]] = {}
        named = image_finder(files)
        try:
            for row in rows_of(path):
                said = texts.setdefault(named(os.path.normpath(row["file_name"])), [])
                if not isinstance(row["text"], str | None):
                    raise TypeError(f"a text must be a string, got {type(row['text']).__name__}")
                said += [] if row["text"] is None else [row["text"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
            reason = shown(repr(error), 200)
            raise ValueError(f"{path}: rows must have file_name and text, got {reason}") from error
        lost = sorted(texts.keys() - {*files})
        if len(lost) == len(texts):
            raise ValueError(f"{path}: file_name must be relative to {root}, got none that is")
        if lost:
            some = ", ".join(map(printable, lost[:5])) + (", …" if len(lost) > 5 else "")
            warnings.warn(f"{path}: {len(lost)} rows name no image: {some}", stacklevel=2)
        return texts
    return None


def image_finder(files: list[str]) -> Callable[[str], str]:
    """A function from a name to the image that it means: the name itself where there is none."""
    exact: set[str] = {*files}
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(plain_name(file), []).append(file)

    def found(name: str) -> str:
        like = alike.get(plain_name(name), [])
        return like[0] if name not in exact and len(like) == 1 else name

    return found


def plain_name(name: str) -> str:
    """A file's name without case, with one kind of slash, accents composed."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _jsonl_rows(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _csv_rows(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)
