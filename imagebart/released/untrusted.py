"""Read the tensors of an untrusted PyTorch checkpoint without executing code.

A `.ckpt` is a zip archive of one pickle (pickled.py) and one entry of raw numbers per storage.
Every name in the pickle is looked up in two short lists, tensor constructors and inert classes, and
any other name refuses the file. Nothing is imported for the file. Tensors stay in the file until
`StoredTensor.read`. Whatever a file holds, it is refused within seconds, and its text is cut and
made printable where an error quotes it (`arguments.shown`).
"""

import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from imagebart.arguments import shown
from imagebart.released.pickled import (
    TEXT_LIMIT,
    Builder,
    Inert,
    UntrustedFileError,
    read_pickle,
)

PICKLE_LIMIT = 16 * 2**20  # bytes; a released scale has about 1 MiB
DIRECTORY_LIMIT = 8 * 2**20  # bytes of a zip archive's list of entries; of a scale some 400 kB
TENSOR_LIMIT = 20_000
DIMENSION_LIMIT = 8

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

INERT = {
    "builtins dict",
    "builtins list",
    "builtins object",
    "__builtin__ dict",
    "__builtin__ list",
    "__builtin__ object",
    "typing Any",
    "collections defaultdict",
    "_codecs encode",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "argparse Namespace",
    "omegaconf.dictconfig DictConfig",
    "omegaconf.listconfig ListConfig",
    "omegaconf.base Metadata",
    "omegaconf.base ContainerMetadata",
    "omegaconf.nodes AnyNode",
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor LearningRateMonitor",
    "pytorch_lightning.utilities.parsing AttributeDict",
}
"""Lightning's objects beside the weights: replaced by `Inert`."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, "StoredTensor"]:
    """The tensors of a checkpoint's `state_dict` (or of a bare one), by name, still in the file.

    Raises UntrustedFileError, a ValueError, for a file that is damaged, of the format before
    PyTorch 1.6, or that refers to anything but tensors and inert data.
    """
    path = Path(path)
    try:
        archive = _Archive(path)
        top = archive.read_pickle()
    except UntrustedFileError as error:
        raise UntrustedFileError(f"{path}: {error}") from None
    except OSError as error:
        raise UntrustedFileError(
            f"{path}: must be a file that can be read, got {error.strerror or error}"
        ) from None
    tensors = top.get("state_dict", top) if isinstance(top, dict) else None
    if not isinstance(tensors, dict):
        raise UntrustedFileError(f"{path}: must hold a state_dict, got {type(top).__name__}")
    found = {name: x for name, x in tensors.items() if isinstance(x, StoredTensor)}
    if len(found) > TENSOR_LIMIT or not all(isinstance(name, str) for name in found):
        raise UntrustedFileError(f"{path}: must hold at most {TENSOR_LIMIT} named tensors")
    if not found:
        raise UntrustedFileError(f"{path}: must hold tensors, got a state_dict without")
    # Each tensor reads its whole storage: a thousand tensors of one large storage would not end.
    total, size = sum(x.storage.size for x in found.values()), path.stat().st_size
    if total > 2 * size:
        raise UntrustedFileError(f"{path}: tensors must not share storages, got {total} bytes")
    return found


# ── tensors in the file ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Storage:
    """A storage in the archive."""

    archive: "_Archive"
    entry: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint: shape and type are known, numbers are loaded by `read`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def read(self) -> Tensor:
        """Read the tensor; UntrustedFileError if its bytes are damaged."""
        data = self.storage.archive.read(self.storage.entry)
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        numbers = torch.frombuffer(data, dtype=self.dtype)
        return numbers.as_strided(self.shape, self.stride, self.offset).contiguous()


def _stored_tensor(storage, offset, shape, stride, *_) -> StoredTensor:
    """In place of `torch._utils._rebuild_tensor_v2`, with bounds checked."""
    if not isinstance(storage, Storage) or not _is_shape((offset,)):
        raise UntrustedFileError("tensors must have a storage and an offset")
    if not _is_shape(shape) or not _is_shape(stride) or len(shape) != len(stride):
        raise UntrustedFileError(
            f"tensors must have a shape and strides of at most {DIMENSION_LIMIT} numbers"
        )
    last = offset + sum((s - 1) * step for s, step in zip(shape, stride, strict=True))
    # A stride of 0 would expand one number to terabytes.
    if math.prod(shape) and (last >= storage.count or math.prod(shape) > storage.count):
        raise UntrustedFileError(
            f"tensors must lie within their storage of {storage.count} numbers, got shape {shape}"
        )
    return StoredTensor(storage, offset, shape, stride)


def _is_shape(numbers: object) -> bool:
    """Whether it is a tuple of a few whole numbers."""
    return (
        type(numbers) is tuple
        and len(numbers) <= DIMENSION_LIMIT
        and all(type(i) is int and 0 <= i < 2**48 for i in numbers)
    )


def _stored_parameter(tensor, *_) -> StoredTensor:
    """In place of `torch._utils._rebuild_parameter`."""
    if not isinstance(tensor, StoredTensor):
        raise UntrustedFileError("parameters must wrap tensors")
    return tensor


BUILDERS = {
    "collections OrderedDict": Builder(lambda: {}),
    "torch._utils _rebuild_tensor_v2": Builder(_stored_tensor),
    "torch._utils _rebuild_parameter": Builder(_stored_parameter),
}


# ── the archive ───────────────────────────────────────────────────────────────────────────────


class _Archive:
    """The zip archive of torch.save: uncompressed entries in one folder."""

    def __init__(self, path: Path):
        self.path = path
        if not is_zip(path):
            raise UntrustedFileError(_why_no_zip(path))
        try:
            self.zip = open_zip(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UntrustedFileError(f"must be a whole zip archive: {shown(str(error))}") from None
        self.sizes = self._checked_sizes()
        pickles = [
            name for name in self.sizes if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(pickles) != 1:
            raise UntrustedFileError(f"must hold one data.pkl, got {len(pickles)}")
        self.folder = pickles[0].removesuffix("data.pkl")
        if self.sizes[pickles[0]] > PICKLE_LIMIT:
            raise UntrustedFileError(
                f"its pickle must be at most {PICKLE_LIMIT} bytes, got {self.sizes[pickles[0]]}"
            )
        order = f"{self.folder}byteorder"
        if order in self.sizes and bytes(self.read(order)) != b"little":
            raise UntrustedFileError("numbers must be little-endian")

    def read(self, entry: str) -> bytearray:
        """An entry's bytes, verified by the archive's checksum."""
        try:
            with cast(zipfile.ZipExtFile, self.zip.open(entry)) as file:
                data = bytearray(self.sizes[entry])
                view, filled = memoryview(data), 0
                while filled < len(data) and (got := file.readinto(view[filled:])):
                    filled += got
                file.read(1)  # the checksum is verified at the end of the entry
        except Exception as error:  # a damaged archive may raise anything
            reason = f"{shown(entry)} is damaged, {shown(str(error))}"
            raise UntrustedFileError(f"{self.path}: {reason}") from None
        if filled < len(data):
            raise UntrustedFileError(f"{self.path}: {shown(entry)} is cut short")
        return data

    def read_pickle(self) -> object:
        """What the archive's pickle builds."""
        data = bytes(self.read(f"{self.folder}data.pkl"))
        return read_pickle(data, find, self.storage)

    def storage(self, pid: object) -> Storage:
        """("storage", type, key, device, count): a storage of the archive, its size checked."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise UntrustedFileError("storages must be described as torch.save does")
        _, kind, key, _, count = pid
        named = isinstance(key, str) and len(key) <= TEXT_LIMIT
        if not isinstance(kind, torch.dtype) or not named or type(count) is not int:
            raise UntrustedFileError("storages must be described as torch.save does")
        entry = f"{self.folder}data/{key}"
        if entry not in self.sizes:
            raise UntrustedFileError(f"storage {shown(key)} must be in the file, got none")
        storage = Storage(self, entry, kind, count)
        if self.sizes[entry] != storage.size:
            raise UntrustedFileError(
                f"storage {shown(key)} must be of {storage.size} bytes, got {self.sizes[entry]}"
            )
        return storage

    def _checked_sizes(self) -> dict[str, int]:
        entries = self.zip.infolist()
        if len(entries) > 3 * TENSOR_LIMIT:
            raise UntrustedFileError(f"must have at most {3 * TENSOR_LIMIT} entries")
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
            if not stored or entry.file_size != entry.compress_size:
                raise UntrustedFileError(
                    f"entries must be stored as they are, {shown(entry.filename)} is not"
                )
        # Overlapping entries would expand to more than the file.
        total, size = sum(entry.file_size for entry in entries), self.path.stat().st_size
        if total > size or len({entry.filename for entry in entries}) != len(entries):
            raise UntrustedFileError(
                f"entries must fit into {size} bytes side by side, got {total}"
            )
        return {entry.filename: entry.file_size for entry in entries}


def find(module: str, name: str) -> object:
    """What a name in the pickle stands for. Names are compared, never imported."""
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if f"{module} {name}" in INERT:
        return Inert
    if f"{module} {name}" in BUILDERS:
        return BUILDERS[f"{module} {name}"]
    raise UntrustedFileError(
        f"must hold tensors and inert data only, got a reference to {shown(f'{module}.{name}')}"
    )


class _ShortReads(io.FileIO):
    """A file of which nobody reads much at once: a zip archive's list of entries is read so."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"entries must be listed in {DIRECTORY_LIMIT} bytes")
        return super().read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip archive; BadZipFile if its list of entries is longer than DIRECTORY_LIMIT."""
    with _ShortReads(path) as file:
        zipfile.ZipFile(file)
    return zipfile.ZipFile(path)


def is_zip(path: Path) -> bool:
    """Whether a file ends like a zip archive; False for a damaged end."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _why_no_zip(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        return (
            "is in PyTorch's format from before 1.6, which cannot be read safely; where you trust "
            "the file, torch.load it and torch.save its state_dict again"
        )
    if not start:
        return "must be a checkpoint, got an empty file"
    return "must be a whole PyTorch checkpoint (a zip archive), got something else or a part of one"
