"""Token files: x_1 of a whole data set, encoded once, with its classes, captions and maps."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imagebart.checkpoint import atomic_write, read_json, write_json
from imagebart.data.images import PathLike

FORMAT = 1  # of a token file; raised when an old reader would misread a new file
HEADER = "tokens.json"
PARTS = ("tokens.npy", "labels.npy", "captions.jsonl", "maps.npy")


class TokenWriter:
    """Writes the tokens x_1 of `count` images to a folder, batch after batch.

        with TokenWriter(folder, count, (h, w), K, image_size=256, vqgan_sha256=…) as writer:
            writer.append(grid, labels, captions, maps)

    tokens.npy (count n, uint16), labels.npy (int32), captions.jsonl and maps.npy (count n, int16)
    if given, and last of all the header, tokens.json: without it there is nothing to read, so a
    killed encode leaves no half file. Further keyword arguments go into the header (`data`,
    `split`, `classes` …).
    """

    def __init__(self, folder: PathLike, count: int, grid: tuple[int, int], K: int, **header):
        if not 1 <= K <= 65536:
            raise ValueError(f"K must lie in 1..65536, got {K}")
        if count < 1 or min(grid) < 1:
            raise ValueError(f"count and grid must be at least 1, got {count} and {grid}")
        self.folder, self.count, self.grid, self.K = Path(folder), count, tuple(grid), K
        if (self.folder / HEADER).exists():
            raise ValueError(f"{self.folder}: must hold no finished token file, got {HEADER}")
        self.header = {
            "format": FORMAT,
            "count": count,
            "height": grid[0],
            "width": grid[1],
            "K": K,
            **header,
        }
        for name in (*PARTS, ".tokens.npy.*.tmp"):
            for leftover in self.folder.glob(name):  # of an encode that was killed
                leftover.unlink()

        self.written = 0
        self._labels: list[int] = []
        self._captions: list[str] = []
        self._maps: list[np.ndarray] = []
        # A plain file, not a memory map: writing to a map on a full disk kills without a word.
        self._open = ExitStack()
        draft = self._open.enter_context(atomic_write(self.folder / "tokens.npy"))
        self._file = self._open.enter_context(open(draft, "wb"))  # noqa: SIM115
        layout = {"descr": "<u2", "fortran_order": False, "shape": (count, grid[0] * grid[1])}
        np.lib.format.write_array_header_1_0(self._file, layout)

    def append(
        self,
        tokens: Tensor,
        labels: Tensor | np.ndarray | Sequence[int] | None = None,
        captions: Sequence[str] | None = None,
        maps: np.ndarray | None = None,
    ) -> None:
        """Add a batch: tokens (b, h, w), and labels, captions, maps (b, h, w) for all or none."""
        b, left = len(tokens), self.count - self.written
        if tuple(tokens.shape[1:]) != self.grid or b > left:
            raise ValueError(
                f"tokens must be at most {left} grids {self.grid}, got {tuple(tokens.shape)}"
            )
        if b and (tokens.min() < 0 or tokens.max() >= self.K):
            raise ValueError(
                f"tokens must lie in [0, {self.K}), got {tokens.min()}..{tokens.max()}"
            )
        self._file.write(tokens.cpu().numpy().astype("<u2").tobytes())
        self._labels += [] if labels is None else [int(label) for label in labels]
        self._captions += [] if captions is None else list(captions)
        self._maps += [] if maps is None else list(np.asarray(maps, np.int16).reshape(b, -1))
        self.written += b
        given = {"labels": self._labels, "captions": self._captions, "maps": self._maps}
        for name, rows in given.items():
            if len(rows) not in (0, self.written):
                raise ValueError(f"{name} must be given for every image, got {len(rows)}")

    def close(self) -> None:
        """Commit: tokens and what belongs to them first, the header last."""
        with self._open:
            if self.written != self.count:
                raise ValueError(f"{self.folder}: must get {self.count} images, got {self.written}")
            if self._labels:
                self._write_array("labels.npy", np.asarray(self._labels, np.int32))
            if self._maps:
                self._write_array("maps.npy", np.stack(self._maps))
            if self._captions:
                self._write_captions()
        write_json(self.header, self.folder / HEADER)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._open.__exit__(kind, error, trace)

    def _write_array(self, name: str, array: np.ndarray) -> None:
        with atomic_write(self.folder / name) as draft, open(draft, "wb") as file:
            np.save(file, array)

    def _write_captions(self) -> None:
        with (
            atomic_write(self.folder / "captions.jsonl") as draft,
            open(draft, "w", encoding="utf-8", newline="\n") as file,
        ):
            file.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in self._captions)


class TokenFile:
    """The tokens x_1 of a data set, as `TokenWriter` left them in a folder.

    `count`, `height`, `width`, `K` and the other entries of `header`; `labels` (count,) int64 or
    None; `captions`, a list or None; `maps` (count, n) int16 or None. Tokens stay on the disk until
    a batch asks for them.
    ValueError if the folder holds no finished token file, or its parts do not belong together.
    """

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)
        if not (self.folder / HEADER).exists():
            raise ValueError(f"{folder}: must hold finished tokens, got no {HEADER}")
        self.header = _checked_header(read_json(self.folder / HEADER), self.folder / HEADER)
        self.count, self.K = self.header["count"], self.header["K"]
        self.height, self.width = self.header["height"], self.header["width"]
        self.image_size = self.header.get("image_size")
        self.classes = tuple(self.header.get("classes") or ())
        self.map_names = tuple(self.header.get("map_names") or ())
        self.vqgan_sha256 = self.header.get("vqgan_sha256")
        self.data, self.split = self.header.get("data"), self.header.get("split")

        shape = (self.count, self.height * self.width)
        self._tokens = _open_array(self.folder / "tokens.npy", np.uint16, shape)
        self.labels: Tensor | None = None
        if (self.folder / "labels.npy").exists():
            labels = _open_array(self.folder / "labels.npy", np.int32, (self.count,))
            self.labels = torch.from_numpy(labels.astype(np.int64))
        self.maps: np.ndarray | None = None
        if (self.folder / "maps.npy").exists():
            self.maps = _open_array(self.folder / "maps.npy", np.int16, shape)

    def __len__(self) -> int:
        return self.count

    def __reduce__(self):
        return TokenFile, (self.folder,)  # a worker opens the files itself

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """x_1 (b, n) int64 of the images `indices`; ValueError if a token is no code."""
        tokens = torch.from_numpy(self._tokens[np.asarray(indices)].astype(np.int64))
        if tokens.numel() and tokens.max() >= self.K:
            raise ValueError(f"{self.folder}: tokens must lie in [0, {self.K}), got {tokens.max()}")
        return tokens

    @cached_property
    def captions(self) -> list[str] | None:
        """One caption an image, None if the data set has none."""
        path = self.folder / "captions.jsonl"
        if not path.exists():
            return None
        try:
            captions = [
                json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]
            ]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: must hold one caption a line, got {error}") from error
        if len(captions) != self.count:
            raise ValueError(f"{path}: must hold {self.count} captions, got {len(captions)}")
        return captions


def _checked_header(header: object, path: Path) -> dict:
    """A token file's header; ValueError if it is none, or of a version unknown here."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        version = header.get("format") if isinstance(header, dict) else None
        raise ValueError(f"{path}: format must be {FORMAT}, got {version}")
    for name in ("count", "height", "width", "K"):
        if not isinstance(header.get(name), int) or header[name] < 1:
            raise ValueError(f"{path}: {name} must be at least 1, got {header.get(name)}")
    return header


def _open_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A .npy file mapped into memory; ValueError if it is not what the header promises."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: must be a whole array, got {error}") from error
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{path}: must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
        )
    return array
