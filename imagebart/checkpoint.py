"""Atomic files, checkpoints of training runs, averaged weights.

atomic_write                  a file has its old or its new content, never a part
save_tensors, load_tensors    weights: safetensors, finite; read_header gives their shapes
Checkpoints                   the state of a training run, verified by a digest when read
EMA                           averaged weights, used for sampling
run_lock, StopSignal          one run per folder; on a signal a run saves before it stops
"""

import hashlib
import io
import json
import os
import pickle
import signal
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagebart.arguments import shown

PathLike = str | os.PathLike

# ── Files ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a draft path, which is renamed to `path` at the end of the block.

    The draft is in the same folder, so the rename is atomic; both are flushed to the disk before
    the block ends. Any exception removes the draft.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield draft
        _flush_file(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def remove_drafts(folder: PathLike) -> None:
    """Remove the drafts of killed processes; whoever writes into the folder must hold its lock."""
    for path in Path(folder).glob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


def require_file(path: Path) -> None:
    """OSError unless it is a regular file: a pipe or a device would be read for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: must be a file that can be read, got {error.strerror or error}")


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a rename to the disk (not needed on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(path: PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


JSON_LIMIT = 16 * 2**20  # bytes


def write_json(value: Any, path: PathLike) -> None:
    """Write `value` as indented JSON; ValueError for NaN, which JSON does not have."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: PathLike) -> Any:
    """The content of a JSON file; ValueError naming the file if it is missing or not JSON."""
    path = Path(path)
    try:
        require_file(path)
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"more than {JSON_LIMIT} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be JSON, got {shown(str(error))}") from None


# ── Weights ───────────────────────────────────────────────────────────────────────────────────

STORED_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
HEADER_LIMIT = 4 * 2**20  # bytes, some 30 000 names; a million take half a minute to parse


def save_tensors(tensors: Mapping[str, Tensor], path: PathLike) -> None:
    """Write `tensors` as safetensors, atomically; ValueError if one of them is not finite."""
    # Copies: the format has no shared memory, and tied weights are two names of one tensor.
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    _require_finite(tensors, path)
    with atomic_write(path) as draft:
        draft.touch()  # with default permissions, which save_file does not set
        mode = draft.stat().st_mode
        save_file(tensors, draft)
        draft.chmod(mode)


def load_tensors(path: PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; ValueError naming a file that is not one.

    Reading executes no code. Weights that are not finite are refused, as they would only show much
    later, as black images.
    """
    path = Path(path)
    for name, (kind, _) in read_header(path).items():
        if kind not in STORED_TYPES:
            raise ValueError(
                f"{path}: {shown(name)} must be of {', '.join(sorted(STORED_TYPES))}, got {kind}"
            )
    with _one_sentence(path):
        tensors = load_file(path)
    _require_finite(tensors, path)
    return tensors


def read_header(path: PathLike) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (type, shape)} of a safetensors file; errors as `load_tensors`. No weight is read."""
    path = Path(path)
    with _one_sentence(path):
        require_file(path)
        _require_short_header(path)
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: (x.get_dtype(), tuple(x.get_shape())) for name, x in slices.items()}


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """What fails while a safetensors file is read, as a ValueError."""
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        reason = shown(str(error))
        raise ValueError(f"{path}: must be a whole safetensors file, got {reason}") from None


def _require_short_header(path: Path) -> None:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER_LIMIT:
        raise ValueError(f"{path}: header must be at most {HEADER_LIMIT} bytes, got {size}")


def _require_finite(tensors: Mapping[str, Tensor], path: PathLike) -> None:
    for name, tensor in tensors.items():
        single = tensor.float() if tensor.dtype == torch.float64 else tensor  # as it will run
        if single.is_floating_point() and not single.isfinite().all():
            raise ValueError(
                f"{path}: weights must be finite, got NaN or infinity in {shown(name)}"
            )


# ── The state of a run ────────────────────────────────────────────────────────────────────────

SEAL = b"\nimagebart sha256 "  # then 64 hexadecimal digits: the digest of the preceding bytes
SEAL_LENGTH = len(SEAL) + 64


KEPT = 2
"""Number of checkpoints kept, in case the newest is damaged."""


class Checkpoints:
    """The checkpoints of one run in one folder, the newest KEPT of them.

    A file is what `torch.save` writes (`torch.load` reads it) with a digest appended, so one rename
    commits both, and corruption, which torch.load does not notice, is detected. One process saves;
    any number may read.
    """

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)
        self._damaged: set[Path] = set()

    def save(self, step: int, state: dict) -> Path:
        """Write the state after `step` steps to the disk, flushed.

        ValueError for a step before the newest one (the folder has another run) or for a state that
        cannot be loaded again; OSError, with nothing changed, if the disk is full.
        """
        newest = max((self._step(path) for path in self._intact()), default=step)
        if step < newest:
            raise ValueError(f"{self.folder}: step must be at least {newest}, got {step}")

        path = self.folder / f"step_{step:08d}.pt"
        with atomic_write(path) as draft:
            _write_sealed(state, draft)
        self._damaged.discard(path)
        self._purge()
        return path

    def latest(self) -> tuple[int, dict] | None:
        """The newest intact (step, state), on the CPU; None if there is no checkpoint.

        A damaged file is skipped with a warning that names it. If all are damaged: ValueError, as a
        new run would overwrite data that might be recoverable.
        """
        paths = self._paths()
        for path in paths:
            try:
                return self._step(path), _read_sealed(path)
            except ValueError as error:
                self._damaged.add(path)
                warnings.warn(f"{error}; going back to the one before", stacklevel=2)
        if paths:
            raise ValueError(
                f"{self.folder}: one checkpoint at least must be whole, got {len(paths)} damaged; "
                "delete them to begin again"
            )
        return None

    def newest(self) -> int | None:
        """The step of the newest checkpoint not found damaged; None if there is none."""
        return max(map(self._step, self._intact()), default=None)

    def _paths(self) -> list[Path]:
        """Every checkpoint, newest first."""
        return sorted(self.folder.glob("step_*.pt"), key=self._step, reverse=True)

    def _intact(self) -> list[Path]:
        """Every checkpoint but those found damaged, newest first."""
        return [path for path in self._paths() if path not in self._damaged]

    def _purge(self) -> None:
        """Remove old and damaged checkpoints, and drafts of killed processes."""
        drafts = self.folder.glob(".step_*.tmp")
        for path in [*self._intact()[KEPT:], *self._damaged, *drafts]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # a leftover file does not end a run
                warnings.warn(f"{path}: cannot be removed, {error.strerror}", stacklevel=3)
        self._damaged.clear()

    @staticmethod
    def _step(path: Path) -> int:
        digits = path.stem.removeprefix("step_")
        if not digits.isdecimal():
            raise ValueError(f"{path}: checkpoints must be called step_<number>.pt")
        return int(digits)


class _Digesting(io.RawIOBase):
    """A file opened for writing that digests its bytes and keeps the error of a failed write."""

    def __init__(self, file: io.RawIOBase | io.BufferedIOBase):
        self.file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.failure = error  # torch raises an unrelated RuntimeError
            raise
        self.digest.update(data)
        return written


def _write_sealed(state: dict, path: Path) -> None:
    with open(path, "wb") as file:
        digesting = _Digesting(file)
        try:
            torch.save(state, cast(BinaryIO, digesting))
        except RuntimeError as error:
            raise digesting.failure or error from None
        file.write(SEAL + digesting.digest.hexdigest().encode())

    # A state that cannot be loaded must fail now, not at the next restart.
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"state must hold only tensors, numbers, text and their containers, got {error}"
        ) from None


def _read_sealed(path: Path) -> dict:
    """The state in a sealed file; ValueError naming the file if its digest is wrong."""
    try:
        if not _seal_holds(path):
            raise ValueError(f"{path}: checkpoint is damaged, its content is not what was saved")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: checkpoint cannot be read, {error}") from None


def _seal_holds(path: Path) -> bool:
    remaining = max(0, path.stat().st_size - SEAL_LENGTH)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while remaining and (block := file.read(min(remaining, 2**20))):
            digest.update(block)
            remaining -= len(block)
        return file.read() == SEAL + digest.hexdigest().encode()


# ── Averaged weights ──────────────────────────────────────────────────────────────────────────


class EMA:
    """θ̄: the exponential moving average of a module's weights θ, used for sampling.

        θ̄ ← d·θ̄ + (1 - d)·θ,   d = min(decay, (1 + n) / (10 + n)),   n = 1, 2, … counts updates

    Parameters are averaged, at least in fp32 (bf16 rounds a step of 1e-4 away); buffers are copied.
    Construct it from the bare module on its device, not from its DDP or compiled wrapper.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.module, self.decay, self.updates = module, decay, 0
        self._averaged = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        self.average = {
            name: tensor.to(self._dtype(name, tensor), copy=True)
            for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights of the module."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))

        now = self.module.state_dict()
        for name in now.keys() - set(self._averaged):
            self.average[name].copy_(now[name])
        averages = [self.average[name] for name in self._averaged]
        weights = [now[name].to(self.average[name].dtype) for name in self._averaged]
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Load the average into a module of the same architecture, in its precision."""
        module.load_state_dict(self.average)

    def state_dict(self) -> dict:
        """The state for `load_state_dict`, exact."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restore `state`; ValueError if it belongs to another architecture."""
        average = state["average"]
        if _shapes(average) != _shapes(self.average):
            different = sorted(_shapes(average).items() ^ _shapes(self.average).items())
            raise ValueError(
                f"the average must have the module's names and shapes, got {different}"
            )
        self.updates = state["updates"]
        for name, tensor in average.items():
            self.average[name].copy_(tensor)

    def _dtype(self, name: str, tensor: Tensor) -> torch.dtype:
        averaged = name in self._averaged
        return torch.promote_types(tensor.dtype, torch.float32) if averaged else tensor.dtype


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ── Locks and signals ─────────────────────────────────────────────────────────────────────────


@contextmanager
def run_lock(folder: PathLike, wait: bool = False) -> Iterator[None]:
    """Lock `folder` for one run; if another process has the lock, ValueError, or wait for it.

    A POSIX record lock: the system releases it when its process ends, and child processes
    (data-loading workers) do not inherit it.
    """
    import fcntl  # not at the top: Windows has none, and reading a model needs no lock

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ValueError(
                f"{folder}: one run at a time must use a folder, got a second one "
                f"while process {file.read().strip() or '?'} runs"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class StopSignal:
    """Turns SIGTERM, SIGUSR1 and Ctrl-C into the flag `requested`, which the training loop checks.

        with StopSignal() as stop:
            while step < steps and not stop.requested: ...

    A second Ctrl-C stops at once. Enter it before data-loading workers start: they inherit it, so
    that a Ctrl-C, which is sent to them too, does not kill them.
    """

    NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
    SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True
