"""LSUN's lmdb, as its download script leaves it, as a data set; it is only read."""

import io
import os
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
        self._opened: tuple[int, Any] = (0, None)
        with self._begin() as reading, reading.cursor() as cursor:
            self.files = [
                os.fsdecode(bytes(key)) for key in cursor.iternext(keys=True, values=False)
            ]
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
        with self._begin() as reading:
            return len(reading.get(os.fsencode(self.files[i])))

    def _content(self, i: int) -> bytes:
        with self._begin() as reading:
            return bytes(reading.get(os.fsencode(self.files[i])))

    def _begin(self) -> Any:
        """A reading transaction; each process, a loader's worker too, opens the file itself."""
        process, database = self._opened
        if process != os.getpid():
            database = open_lmdb(self.root)
            self._opened = os.getpid(), database
        return database.begin(buffers=True)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": (0, None)}


def open_lmdb(root: Path) -> Any:
    """An lmdb, to read; ValueError if that needs a package, or there is none."""
    try:
        import lmdb
    except ImportError:
        raise ValueError(f"{root}: an lmdb needs `pip install lmdb`, got none") from None
    try:
        return lmdb.open(str(root), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ValueError(f"{root}: must be an lmdb that can be read, got {error}") from error
