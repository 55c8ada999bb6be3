"""Scenes that were painted once and are kept in a file, where the next epoch and the next stage of
training find them."""

import os
import weakref
from pathlib import Path

import numpy as np

from imagebart.checkpoint import PathLike

CAPTION_BYTES = 256


class Painted:
    """The first `count` scenes of a split of scenery, height × width pixels each, in a file of
    `folder`.

    A scene is painted by whichever process asks for it first, so what is found never depends on who
    was faster. The file takes up disk as scenes come, 4 · height · width bytes each. ValueError if
    there is one of another number of scenes; OSError if the disk is full.
    """

    def __init__(self, folder: PathLike, split: str, count: int, height: int, width: int):
        self.path = Path(folder) / f"{split}_{height}x{width}.scenes"
        self.row = np.dtype(
            [
                ("image", "u1", (height, width, 3)),
                ("map", "u1", (height, width)),
                ("caption", f"S{CAPTION_BYTES}"),
                ("kind", "u1"),
                ("done", "?"),  # last, as a row is written from its first byte on
            ]
        )
        self.count = count
        self._open()

    def _open(self) -> None:
        size = self.count * self.row.itemsize
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT)
        weakref.finalize(self, os.close, self._file)
        if (got := os.fstat(self._file).st_size) not in (0, size):
            raise ValueError(f"{self.path}: must be {self.count} scenes, {size} bytes, got {got}")
        os.truncate(self._file, size)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._open()  # a worker has a file of its own

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str, int] | None:
        """Image (H W 3) and semantic map (H W), uint8, caption, and number of the class of a scene;
        None if it is not kept yet."""
        size = self.row.itemsize
        (row,) = np.frombuffer(os.pread(self._file, size, index * size), self.row)
        if not row["done"]:
            return None
        image, semantic_map = row["image"].copy(), row["map"].copy()  # which may be written to
        return image, semantic_map, row["caption"].decode(), int(row["kind"])

    def keep(
        self, index: int, image: np.ndarray, semantic_map: np.ndarray, caption: str, kind: int
    ) -> None:
        """Write a scene, as `[index]` gives it."""
        text = caption.encode()
        if len(text) > CAPTION_BYTES:
            raise ValueError(f"a caption must have at most {CAPTION_BYTES} bytes, got {caption!r}")
        row = np.array((image, semantic_map, text, kind, True), self.row)
        left, at = memoryview(row.tobytes()), index * self.row.itemsize
        while left:
            written = os.pwrite(self._file, left, at)
            left, at = left[written:], at + written
