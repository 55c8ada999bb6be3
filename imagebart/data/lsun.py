"""LSUN's lmdb, as its download script leaves it, as a data set; it is only read."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import read_image

LMDB = "data.mdb"
"""The file that makes a folder an lmdb."""


class LmdbFolder(ImageFolder):
    """The images that are the values of an lmdb, in the order of their keys: dict(image, class -1,
    text "").

    A file's name is its key. LSUN has an lmdb for each class, and no captions. ValueError if the
    package lmdb is missing, or `root` holds no lmdb of images.
    """

    def _find(self) -> None:
        with open_lmdb(self.root) as reading, reading.cursor() as cursor:
            self._sizes = {os.fsdecode(bytes(key)): len(value) for key, value in cursor}
        self.files = list(self._sizes)
        if not self.files:
            raise ValueError(f"{self.root}: its lmdb must hold images, got none")
        self.classes = [-1] * len(self.files)
        self.names = {"class": (), "map": ()}

    def texts(self, index: int) -> list[str]:
        """No captions."""
        return []

    def picture(self, i: int) -> Image.Image:
        return read_image(self.root / self.files[i], io.BytesIO(self._content(i)))

    def size_of(self, i: int) -> int:
        return self._sizes[self.files[i]]

    def _content(self, i: int) -> bytes:
        with open_lmdb(self.root) as reading:
            return bytes(reading.get(os.fsencode(self.files[i])))


@contextmanager
def open_lmdb(root: Path) -> Iterator[Any]:
    """A reading transaction of an lmdb, whose values are views; ValueError if that needs a package,
    or there is none.

    Opened for each image, in a small part of the time that decoding takes: lmdb allows a file to
    be open once in a process, and not across a fork, as loaders make their workers.
    """
    try:
        import lmdb
    except ImportError:
        raise ValueError(f"{root}: an lmdb needs `pip install lmdb`, got none") from None
    try:
        with (
            lmdb.open(str(root), readonly=True, lock=False, readahead=False) as database,
            database.begin(buffers=True) as reading,
        ):
            yield reading
    except lmdb.Error as error:
        raise ValueError(f"{root}: must be an lmdb that can be read, got {error}") from error
