"""Token files: x_1 of a whole data set and its conditions, both as tokens, encoded once."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from imagebart.checkpoint import PathLike, atomic_write, read_json, sha256_of, write_json
from imagebart.conditions import (
    ABSENT,
    CONDITIONS,
    Condition,
    ConditionShape,
    find_condition,
    fitted,
    tokenise_text,
)
from imagebart.notation import Int

FORMAT = 2  # of a token file; raised when an old reader would misread a new file
HEADER = "tokens.json"


class TokenWriter:
    """Writes the tokens x_1 of `count` images to a folder, batch after batch.

        with TokenWriter(folder, count, (h, w), K, image_size=256, vqgan_sha256=…) as writer:
            writer.append(grid, {"class": ids, "text": ids_of_text})

    tokens.npy (count n, uint16), `class.npy`, `text.npy` … for each condition that is given (count
    m, see `CONDITIONS`), and last of all the header, tokens.json: without it there is nothing to
    read, so a killed encode leaves no half file. Further keyword arguments go into the header
    (`data`, `split`, `names` …).
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
        for name in ("tokens.npy", *map("{}.npy".format, CONDITIONS), ".tokens.npy.*.tmp"):
            for leftover in self.folder.glob(name):  # of an encode that was killed
                leftover.unlink()

        self.written = 0
        self._conditions: dict[str, list[np.ndarray]] = {}
        # A plain file, not a memory map: writing to a map on a full disk kills without a word.
        self._open = ExitStack()
        draft = self._open.enter_context(atomic_write(self.folder / "tokens.npy"))
        self._file = self._open.enter_context(open(draft, "wb"))  # noqa: SIM115
        layout = {"descr": "<u2", "fortran_order": False, "shape": (count, grid[0] * grid[1])}
        np.lib.format.write_array_header_1_0(self._file, layout)

    def append(self, tokens: Tensor, conditions: dict[str, np.ndarray] | None = None) -> None:
        """Add a batch: tokens (b, h, w), and the same conditions (b, m) for every batch."""
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
        self.written += b
        for name, rows in (conditions or {}).items():
            given = np.asarray(rows)
            rows = given.astype(find_condition(name).stored)
            if not np.array_equal(rows, given):
                raise ValueError(f"{name} must fit {rows.dtype}, got up to {given.max()}")
            rows = rows.reshape(len(rows), -1)
            self._conditions.setdefault(name, []).append(rows)
        for name, parts in self._conditions.items():
            if (got := sum(map(len, parts))) != self.written:
                raise ValueError(f"{name} must be given for every image, got {got}")

    def close(self) -> None:
        """Commit: tokens and what belongs to them first, the header last."""
        with self._open:
            if self.written != self.count:
                raise ValueError(f"{self.folder}: must get {self.count} images, got {self.written}")
            for name, parts in self._conditions.items():
                rows = np.concatenate(parts)
                self._write_array(f"{name}.npy", rows)
                self.header.setdefault("conditions", {})[name] = rows.shape[1]
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


class TokenFile:
    """The tokens x_1 of a data set, as `TokenWriter` left them in a folder.

    `count`, `height`, `width`, `K` and the other entries of `header`; `conditions`, an array
    (count, m) for each that the data set has, and `names`, those of its classes and its maps'
    kinds. All tokens stay on the disk until a batch asks for them. Files of format 1, whose
    captions are text, are read too.
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
        self.vqgan_sha256 = self.header.get("vqgan_sha256")
        self.data, self.split = self.header.get("data"), self.header.get("split")

        shape = (self.count, self.height * self.width)
        self._tokens = _open_array(self.folder / "tokens.npy", np.uint16, shape)
        if self.header["format"] == 1:
            self.names, self.conditions = _format_1(self.folder, self.header)
            return
        names = self.header.get("names", {})
        self.names = {name: tuple(names.get(name, ())) for name in CONDITIONS}
        self.conditions = {
            name: _open_array(
                self.folder / f"{name}.npy", find_condition(name).stored, (self.count, length)
            )
            for name, length in self.header.get("conditions", {}).items()
        }

    def __len__(self) -> int:
        return self.count

    def __reduce__(self):
        return TokenFile, (self.folder,)  # a worker opens the files itself

    def digest(self) -> str:
        """What the tokens are, wherever they lie: the SHA-256 of the arrays."""
        sha = hashlib.sha256()
        for path in sorted(self.folder.glob("*.npy")):
            sha.update(f"{path.name} {sha256_of(path)}\n".encode())
        return sha.hexdigest()

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """x_1 (b, n) int64 of the images `indices`; ValueError if a token is no code."""
        tokens = torch.from_numpy(self._tokens[np.asarray(indices)].astype(np.int64))
        if tokens.numel() and tokens.max() >= self.K:
            raise ValueError(f"{self.folder}: tokens must lie in [0, {self.K}), got {tokens.max()}")
        return tokens

    def condition(
        self, indices: Sequence[int] | np.ndarray, shapes: dict[str, ConditionShape]
    ) -> Condition | None:
        """The conditions (b, m) of the images `indices`, for a denoiser with these.

        ValueError if the data set lacks one of them altogether.
        """
        parts = []
        for name, shape in shapes.items():
            if name not in self.conditions:
                raise ValueError(f"{self.folder}: must hold {name} for this denoiser, got none")
            rows = torch.from_numpy(self.conditions[name][np.asarray(indices)].astype(np.int64))
            parts.append(fitted(rows, name, shape.length))
        return torch.cat(parts, dim=1) if parts else None

    def repeated(self, words: dict[str, int]) -> Int[np.ndarray, " m"]:
        """Indices of all images: of those whose text has one of these words, as often as it says.

        An image of several has the most of theirs; a word that no text has changes nothing. What a
        text means is learned as before, of what is rare in the data just sooner (repeat factors,
        Gupta et al. 2019).
        """
        times, texts = np.ones(self.count, np.int64), self.conditions.get("text")
        if texts is None:
            return np.arange(self.count)
        for word, often in words.items():
            (ids,) = tokenise_text([word], (0, 0))
            pieces = ids[ids != ABSENT][1:-1]  # without START and END
            if not len(pieces):
                continue
            has = (sliding_window_view(texts, len(pieces), axis=1) == pieces).all(-1).any(-1)
            times[has] = np.maximum(times[has], often)
        return np.repeat(np.arange(self.count), times)


def _format_1(folder: Path, header: dict) -> tuple[dict[str, tuple], dict[str, np.ndarray]]:
    """(names, conditions) of a token file of format 1: labels.npy, captions.jsonl, maps.npy."""
    names = {name: () for name in CONDITIONS}
    names |= {"class": tuple(header.get("classes") or ())}
    names |= {"map": tuple(header.get("map_names") or ())}
    count, n, conditions = header["count"], header["height"] * header["width"], {}
    if (folder / "labels.npy").exists():
        conditions["class"] = _open_array(folder / "labels.npy", np.int32, (count,))[:, None]
    path = folder / "captions.jsonl"
    if path.exists():
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            texts = tokenise_text([json.loads(line) for line in lines], (0, 0))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: must hold one caption a line, got {error}") from error
        if len(texts) != count:
            raise ValueError(f"{path}: must hold {count} captions, got {len(texts)}")
        conditions["text"] = texts
    if (folder / "maps.npy").exists():
        conditions["map"] = _open_array(folder / "maps.npy", np.int16, (count, n))
    return names, conditions


def _checked_header(header: object, path: Path) -> dict:
    """A token file's header; ValueError if it is none, or of a version unknown here."""
    if not isinstance(header, dict) or header.get("format") not in (1, FORMAT):
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
