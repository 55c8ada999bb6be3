"""What is in a folder of images, and what is wrong with it, found before anything is trained."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import printable
from imagebart.data.listing import files_below, is_image

OTHERS = (".txt", ".cls", ".csv", ".jsonl", ".json", ".tar", ".map.png", ".md", ".mdb")
"""Endings of files that are no images and are meant to be there."""

FAULTS = {  # how a reason begins, a regular expression → what is wrong, in two or three words
    r"'utf-8' codec": "a caption that is no text",
    r"must be a map": "a map that cannot be read",
    r"kinds must lie": "a map with unknown kinds",
    r"must have one channel": "a map with colours",
    r"must have the aspect ratio": "a map of another shape",
    r"\d+×\d+ pixels, at most": "too large",
    r"Image size .* exceeds limit": "too large",
    r"(image file is )?[Tt]runcated": "cut short",
    r"cannot identify": "no image",
    r"\[Errno \d+\] No such file": "not there",
    r"\[Errno \d+\] Permission denied": "not allowed",
    r"\[Errno \d+\] Is a directory": "not a file",
    r"pixels must be integers": "pixels of unknown range",
    r"grey must lie in 0\.\.65535": "pixels of unknown range",
}
"""A reason is the error behind that of a reader, whose own text begins with the file's name."""


@dataclass
class Findings:
    """What a scan has found until now."""

    images: int = 0  # that were read
    bad: dict[str, list[str]] = field(default_factory=dict)  # fault → files
    small: int = 0  # images smaller than the size that was asked for
    captions: int = 0  # images with one at least

    @property
    def bad_count(self) -> int:
        return sum(map(len, self.bad.values()))

    def lines(self) -> list[str]:
        """All of it in sentences: totals first, then every bad file under its fault."""
        total = self.images + self.bad_count
        said = [f"{total:,} images, {self.bad_count:,} of them cannot be read"]
        said += [f"{self.captions:,} with a caption"] if self.captions else []
        said += [f"{self.small:,} smaller than the size: enlarged"] if self.small else []
        for fault, files in sorted(self.bad.items()):
            said += [f"{fault}, {len(files):,}:", *(f"    {name}" for name in files)]
        return said


def scan(data: ImageFolder, size: int | None = None) -> Iterator[Findings]:
    """Read every image of a data set once, as training does; the findings after each of them.

    `size` in pixels tells which images are small. Nothing is raised for a bad file.
    """
    found = Findings()
    for i, name in enumerate(data.files):
        try:
            image = data.picture(i)
            if data.names["map"]:
                data.map_of(i, image)
            found.captions += bool(data.texts(i))
        except ValueError as error:
            found.bad.setdefault(fault_of(error, data.size_of(i)), []).append(printable(name))
        else:
            found.images += 1
            found.small += size is not None and min(image.size) < size
        yield found


def fault_of(error: ValueError, size: int) -> str:
    """What is wrong with a file of so many bytes, from the error of its reader."""
    if size == 0:
        return "empty"
    reason = str(error.__cause__)
    return next((fault for start, fault in FAULTS.items() if re.match(start, reason)), "damaged")


def skipped_files(root: Path) -> Counter[str]:
    """How many files of each ending are neither images nor what belongs to them."""
    names = [name.lower() for name in files_below(os.fspath(root))]
    others = [name for name in names if not is_image(name) and not name.endswith(OTHERS)]
    return Counter(os.path.splitext(name)[1] or "without an ending" for name in others)
