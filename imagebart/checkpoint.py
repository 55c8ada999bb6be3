"""What is written survives: atomic files, checkpoints that resume, averaged weights.

atomic_write                  a file is the old one or the new one, never half of either
save_tensors, load_tensors    weights: safetensors, finite
Checkpoints                   the state of a training run, verified by its digest when it is read
EMA                           the averaged weights that are sampled from
run_lock, StopSignal          one run a folder; a run that is told to stop saves first
"""

import hashlib
import io
import json
import os
import pickle
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PathLike = str | os.PathLike

# ── Files ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Write to the path this yields; it becomes `path` at the end of the block, or never was.

    The draft lies in the same folder, so the rename that commits it is one step of the file system;
    both are flushed to the disk before the block ends. Any exception removes the draft.
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


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: must be a file that can be read, got {error.strerror or error}")


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is (Windows has no such call, nor the need)."""
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


def write_json(value: Any, path: PathLike) -> None:
    """`value` as JSON that people can read; ValueError for NaN, which JSON does not have."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: PathLike) -> Any:
    """What `write_json` wrote; ValueError naming the file if it is missing or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be JSON, got {error}") from None


# ── Weights ───────────────────────────────────────────────────────────────────────────────────

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
        draft.touch()  # with the permissions of any new file, which save_file would not give
        mode = draft.stat().st_mode
        save_file(tensors, draft)
        draft.chmod(mode)


def load_tensors(path: PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; ValueError naming a file that is not one.

    Reading runs no code, whoever wrote the file. A weight that is not finite is refused too: it
    would only show much later, as black images.
    """
    path = Path(path)
    try:
        _require_short_header(path)
        tensors = load_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise ValueError(f"{path}: must be a whole safetensors file, got {error}") from None
    _require_finite(tensors, path)
    return tensors


def _require_short_header(path: Path) -> None:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > HEADER_LIMIT:
        raise ValueError(f"{path}: header must be at most {HEADER_LIMIT} bytes, got {size}")


def _require_finite(tensors: Mapping[str, Tensor], path: PathLike) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: weights must be finite, got NaN or infinity in {name}")


# ── The state of a run ────────────────────────────────────────────────────────────────────────

SEAL = b"\nimagebart sha256 "  # then 64 hexadecimal digits: the digest of all that comes before
SEAL_LENGTH = len(SEAL) + 64


KEPT = 2
"""Checkpoints of a run that are kept: a damaged one needs one before it."""


class Checkpoints:
    """The checkpoints of one run in one folder, the newest KEPT of them.

    A file is what `torch.save` writes (`torch.load` reads it) sealed by a digest at its end, so a
    single rename commits both, and a flipped bit, which torch.load does not notice, is found.
    One process saves; any number may read.
    """

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)
        self._damaged: set[Path] = set()

    def save(self, step: int, state: dict) -> Path:
        """Write the state after `step` steps; when this returns it is on the disk.

        ValueError for a step before the newest one (another run lives here) or for a state that
        could not be read again; OSError, and nothing changed, if the disk is full.
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
        """The newest (step, state) that is whole, on the CPU; None if nothing was ever saved.

        A damaged file is passed over with a warning that names it. If all are damaged: ValueError,
        for a run that silently began again would overwrite what might still be saved.
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

    def _paths(self) -> list[Path]:
        """Every checkpoint, newest first."""
        return sorted(self.folder.glob("step_*.pt"), key=self._step, reverse=True)

    def _intact(self) -> list[Path]:
        """Every checkpoint but those found damaged, newest first."""
        return [path for path in self._paths() if path not in self._damaged]

    def _purge(self) -> None:
        """Remove what a good save made superfluous: the old, the damaged, drafts of the killed."""
        drafts = self.folder.glob(".step_*.tmp")
        for path in [*self._intact()[KEPT:], *self._damaged, *drafts]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # too much on the disk is no reason to end a run
                warnings.warn(f"{path}: cannot be removed, {error.strerror}", stacklevel=3)
        self._damaged.clear()

    @staticmethod
    def _step(path: Path) -> int:
        digits = path.stem.removeprefix("step_")
        if not digits.isdecimal():
            raise ValueError(f"{path}: checkpoints must be called step_<number>.pt")
        return int(digits)


class _Digesting(io.RawIOBase):
    """A file opened for writing that digests what passes, and remembers why a write failed."""

    def __init__(self, file: io.RawIOBase | io.BufferedIOBase):
        self.file, self.digest, self.failure = file, hashlib.sha256(), None

    def write(self, data) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.failure = error  # torch reports it as a RuntimeError about something else
            raise
        self.digest.update(data)
        return written


def _write_sealed(state: dict, path: Path) -> None:
    with open(path, "wb") as file:
        digesting = _Digesting(file)
        try:
            torch.save(state, digesting)
        except RuntimeError as error:
            raise digesting.failure or error from None
        file.write(SEAL + digesting.digest.hexdigest().encode())

    # A state that cannot be read back must fail now, not at the restart that needs it.
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"state must hold only tensors, numbers, text and their containers, got {error}"
        ) from None


def _read_sealed(path: Path) -> dict:
    """The state in a sealed file; ValueError naming the file if the seal is broken."""
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
    """θ̄: the moving average of a module's weights θ, which is what is sampled from.

        θ̄ ← d·θ̄ + (1 - d)·θ,   d = min(decay, (1 + n) / (10 + n)),   n = 1, 2, … counts updates

    Parameters are averaged, in fp32 at least (in bf16 a step of 1e-4 is lost to rounding); buffers
    are copied. Make it from the bare module, not its DDP or compiled wrapper, once it is on its
    device.
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
        """Move the average towards the module's weights of now."""
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
        """Put the average into a module built like the one averaged, in its own precision."""
        module.load_state_dict(self.average)

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to go on as if never stopped."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`; ValueError if it is the average of another module."""
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


# ── One run, told to stop ─────────────────────────────────────────────────────────────────────


@contextmanager
def run_lock(folder: PathLike, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for one run; if another process holds it, ValueError at once, or wait for it.

    A POSIX record lock: the system frees it when its process ends, however it ends, and children
    (the workers that load data) do not inherit it.
    """
    import fcntl  # here, not above: Windows has none, and reading a model needs no lock

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
    """Turns SIGTERM and Ctrl-C into `requested`, which the loop reads where it can stop cleanly.

        with StopSignal() as stop:
            while step < steps and not stop.requested: ...

    A second Ctrl-C stops at once. Enter it before data-loading workers start: they then inherit it,
    and a Ctrl-C, which reaches them too, does not kill them under the loop's hands.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

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
