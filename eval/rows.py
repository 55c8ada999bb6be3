"""A row of numbers for each image, saved as they come: a run that was stopped goes on there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from imagebart.checkpoint import atomic_write

Columns = Mapping[str, tuple[str, int]]
"""{name: (NumPy type, numbers in a row)}"""


class ImageRows:
    """`n` rows of these columns in a file (.npy), or in memory without a path.

    Memory does not grow with n: the file is mapped. Several processes may write rows of one file.
    """

    def __init__(self, path: Path | None, n: int, columns: Columns):
        self.n = n
        fields = [("done", "?"), *((name, *of) for name, of in columns.items())]
        kind = np.dtype(fields, align=True)  # PyTorch takes columns as they lie
        if path is None:
            self.table = np.zeros(n, kind)
            return
        if not path.exists():
            with atomic_write(path) as draft:
                np.lib.format.open_memmap(draft, mode="w+", dtype=kind, shape=(n,)).flush()
        self.table = np.lib.format.open_memmap(path, mode="r+")
        if self.table.dtype != kind or self.table.shape != (n,):
            raise ValueError(f"{path} must hold {n} rows of this run, got others: delete it")

    def missing(self, part: range | None = None, batch: int = 1) -> Iterator[list[int]]:
        """The rows of a part (all) that are not there yet, `batch` at a time."""
        part = range(self.n) if part is None else part
        left = [i for i in part if not self.table["done"][i]]
        for start in range(0, len(left), batch):
            yield left[start : start + batch]

    def left(self, shown: int = 0) -> list[int]:
        """All rows that are missing, and the first `shown`, which a picture needs once more."""
        return [i for i in range(self.n) if i < shown or not self.table["done"][i]]

    def put(self, at: list[int], **columns) -> None:
        """Save rows; they count as done once all their numbers are written."""
        for name, values in columns.items():
            values = values.cpu().numpy() if hasattr(values, "cpu") else np.asarray(values)
            self.table[name][at] = values.reshape(len(at), *self.table[name].shape[1:])
        self.table["done"][at] = True
        if isinstance(self.table, np.memmap):
            self.table.flush()

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, (n,) or (n, numbers in a row)."""
        if not self.table["done"].all():
            raise ValueError(f"all {self.n} rows must be there, got {self.table['done'].sum()}")
        return self.table[name]
