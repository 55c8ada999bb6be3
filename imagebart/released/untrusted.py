"""Read the tensors of an untrusted PyTorch checkpoint without executing code.

A `.ckpt` is a zip archive of one pickle and one entry of raw numbers per storage. A pickle is a
program that can call any importable function. Here every name is looked up in two short lists,
tensor constructors and inert classes, and any other name refuses the file. Nothing is imported for
the file. Tensors stay in the file until `StoredTensor.read`.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PICKLE_LIMIT = 16 * 2**20  # bytes; a released scale has about 1 MiB
OPERATION_LIMIT = 2_000_000
TENSOR_LIMIT = 20_000
TUPLE_LIMIT = 50_000  # a released scale has 14_000; hashing 150_000 nested ones crashes the process

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

TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
"""Containers that nest without limit and are hashable."""

REFUSED_OPERATIONS = {"EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}


class UntrustedFileError(ValueError):
    """A file that is not a checkpoint of plain tensors."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, "StoredTensor"]:
    """The tensors of a checkpoint's `state_dict` (or of a bare one), by name, still in the file.

    Raises UntrustedFileError, a ValueError, for a file that is damaged, of the format before
    PyTorch 1.6, or that refers to anything but tensors and inert data.
    """
    path = Path(path)
    try:
        archive = _Archive(path)
        top = _unpickle(archive)
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
    return found


# ── tensors in the file ───────────────────────────────────────────────────────────────────────


class Sealed:
    """An object that a pickle may not modify (it could change a tensor's bounds)."""

    __slots__ = ()

    def __setstate__(self, _) -> None:
        raise UntrustedFileError("its pickle must not alter what it has built")


@dataclass(frozen=True)
class Storage(Sealed):
    """A storage in the archive."""

    archive: "_Archive"
    entry: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor(Sealed):
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
    numbers = [offset, *shape, *stride]
    whole = all(type(i) is int and 0 <= i < 2**48 for i in numbers)
    if not isinstance(storage, Storage) or not whole or len(shape) != len(stride):
        raise UntrustedFileError("tensors must have a storage, an offset, a shape and strides")
    last = offset + sum((s - 1) * step for s, step in zip(shape, stride, strict=True))
    # A stride of 0 would expand one number to terabytes.
    if math.prod(shape) and (last >= storage.count or math.prod(shape) > storage.count):
        raise UntrustedFileError(
            f"tensors must lie within their storage of {storage.count} numbers, "
            f"got shape {tuple(shape)}"
        )
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _stored_parameter(tensor, *_) -> StoredTensor:
    """In place of `torch._utils._rebuild_parameter`."""
    if not isinstance(tensor, StoredTensor):
        raise UntrustedFileError("parameters must wrap tensors")
    return tensor


@dataclass(frozen=True)
class Builder(Sealed):
    """A function that a pickle may call."""

    build: Callable

    def __call__(self, *arguments) -> object:
        return self.build(*arguments)


BUILDERS = {
    "collections OrderedDict": OrderedDict,
    "torch._utils _rebuild_tensor_v2": Builder(_stored_tensor),
    "torch._utils _rebuild_parameter": Builder(_stored_parameter),
}


class Inert:
    """Placeholder for objects other than tensors: accepts and ignores everything."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _) -> None:
        pass

    def append(self, _) -> None:
        pass

    def extend(self, _) -> None:
        pass

    def __setitem__(self, *_) -> None:
        pass


# ── the archive ───────────────────────────────────────────────────────────────────────────────


class _Archive:
    """The zip archive of torch.save: uncompressed entries in one folder."""

    def __init__(self, path: Path):
        self.path = path
        if not is_zip(path):
            raise UntrustedFileError(_why_no_zip(path))
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UntrustedFileError(f"must be a whole zip archive: {error}") from None
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
            with self.zip.open(entry) as file:
                data = bytearray(self.sizes[entry])
                view, filled = memoryview(data), 0
                while filled < len(data) and (got := file.readinto(view[filled:])):
                    filled += got
                file.read(1)  # the checksum is verified at the end of the entry
        except Exception as error:  # a damaged archive may raise anything
            raise UntrustedFileError(f"{self.path}: {entry} is damaged, {error}") from None
        if filled < len(data):
            raise UntrustedFileError(f"{self.path}: {entry} is cut short")
        return data

    def _checked_sizes(self) -> dict[str, int]:
        entries = self.zip.infolist()
        if len(entries) > 3 * TENSOR_LIMIT:
            raise UntrustedFileError(f"must have at most {3 * TENSOR_LIMIT} entries")
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
            if not stored or entry.file_size != entry.compress_size:
                raise UntrustedFileError(
                    f"entries must be stored as they are, {entry.filename} is not"
                )
        # Overlapping entries would expand to more than the file.
        total, size = sum(entry.file_size for entry in entries), self.path.stat().st_size
        if total > size or len({entry.filename for entry in entries}) != len(entries):
            raise UntrustedFileError(
                f"entries must fit into {size} bytes side by side, got {total}"
            )
        return {entry.filename: entry.file_size for entry in entries}


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


# ── the pickle ────────────────────────────────────────────────────────────────────────────────


class _Unpickler(pickle.Unpickler):
    """Builds containers, `StoredTensor`s and `Inert`s; any other name refuses the file."""

    def __init__(self, data: bytes, archive: _Archive):
        super().__init__(io.BytesIO(data))
        self.archive = archive

    def find_class(self, module: str, name: str):
        """Names are compared, never imported."""
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if f"{module} {name}" in INERT:
            return Inert
        if f"{module} {name}" in BUILDERS:
            return BUILDERS[f"{module} {name}"]
        raise UntrustedFileError(
            f"must hold tensors and inert data only, got a reference to {module}.{name}"
        )

    def persistent_load(self, pid) -> Storage:
        """("storage", type, key, device, count): a storage of the archive, its size checked."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise UntrustedFileError("storages must be described as torch.save does")
        _, kind, key, _, count = pid
        entry = f"{self.archive.folder}data/{key}"
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int:
            raise UntrustedFileError("storages must be described as torch.save does")
        if entry not in self.archive.sizes:
            raise UntrustedFileError(f"storage {key} must be in the file, got none")
        if self.archive.sizes[entry] != count * kind.dtype.itemsize:
            raise UntrustedFileError(
                f"storage {key} must be of {count * kind.dtype.itemsize} bytes, "
                f"got {self.archive.sizes[entry]}"
            )
        return Storage(self.archive, entry, kind.dtype, count)


@dataclass(frozen=True)
class _StorageType(Sealed):
    """Placeholder for torch.FloatStorage and similar; not callable."""

    dtype: torch.dtype


def _unpickle(archive: _Archive) -> object:
    data = bytes(archive.read(f"{archive.folder}data.pkl"))
    try:
        _require_harmless(data)
        return _Unpickler(data, archive).load()
    except (UntrustedFileError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UntrustedFileError(
            f"its pickle is damaged: {error or type(error).__name__}"
        ) from None


def _require_harmless(data: bytes) -> None:
    """Refuse operations that a checkpoint does not need and that could exhaust time, memory or
    stack."""
    tuples = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if operation.name in REFUSED_OPERATIONS:
            raise UntrustedFileError(f"its pickle must not use {operation.name}")
        # The memo is an array: one large index would exhaust memory.
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise UntrustedFileError("its pickle must number its memo from 0")
        tuples += operation.name in TUPLES
        if tuples > TUPLE_LIMIT:
            raise UntrustedFileError(f"its pickle must build at most {TUPLE_LIMIT} tuples")
        if count > OPERATION_LIMIT:
            raise UntrustedFileError(f"its pickle must have at most {OPERATION_LIMIT} operations")
