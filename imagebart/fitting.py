"""Does a file of weights fit config.json? Answered from its header, before anything is built.

require_bounds     sizes of a configuration: none beyond LIMITS
require_weights    names, shapes and types of a file: those of a module, which is built on the
                   meta device, where sizes cost nothing
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from imagebart.arguments import shown
from imagebart.checkpoint import read_header
from imagebart.int8 import without_scales

LIMITS = {
    # a VQGAN
    "image_size": 2**14,
    "K": 2**18,
    "embed_dim": 2**12,
    "z_channels": 2**12,
    "channels": 2**10,
    "multipliers": 64,
    "attention_levels": 64,
    "blocks": 16,
    "patch": 64,
    "pixel_channels": 2**10,
    "extra_decoder_blocks": 16,
    "known_channels": 2**10,
    # a scale
    "grid": 128,
    "width": 2**14,
    "heads": 2**8,
    "head_width": 2**10,
    "encoder_depth": 64,
    "decoder_depth": 64,
    # a condition
    "vocabulary": 2**20,
    "length": 2**14,
    "vectors": 2**20,
}
"""Largest sizes that are loaded, above those of the paper's models."""

MOST_ENTRIES = 8
"""Of a list of sizes, or a table of them."""

FLOATS = {"F64", "F32", "F16", "BF16"}
WHOLE = {torch.int64: {"I64"}, torch.int32: {"I32"}}
"""Types of weights and of tables, as safetensors names them."""


def require_bounds(sizes: dict, path: str) -> None:
    """ValueError for a whole number beyond LIMITS, and for a list or a table of too many."""
    for name, size in sizes.items():
        where = f"{path}: {shown(name)}"
        if isinstance(size, dict | list | tuple) and len(size) > MOST_ENTRIES:
            raise ValueError(f"{where} must be at most {MOST_ENTRIES}, got {len(size)}")
        if isinstance(size, dict):
            require_bounds(size, where)
        elif name in LIMITS:
            _require_bound(size if isinstance(size, list | tuple) else [size], LIMITS[name], where)


def _require_bound(sizes: Sequence[int], most: int, where: str) -> None:
    for size in sizes:
        if not 0 <= size <= most:
            raise ValueError(f"{where} must lie in 0..{most}, got {shown(str(size), 40)}")


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory for its weights."""
    with torch.device("meta"), Undrawn():
        return build()


DRAWS = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
"""By which new layers draw their weights."""


class Undrawn(TorchFunctionMode):
    """New layers leave their weights undrawn, in this thread: for those whose weights come from a
    file, or who have no memory for them (where drawing would load PyTorch's compiler, in two
    seconds). The process' random numbers stay where they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def require_weights(path: Path, wanted: dict[str, Tensor]) -> None:
    """ValueError unless a safetensors file has the names, shapes and kinds of these tensors."""
    got = without_scales(read_header(path))
    for name in sorted(wanted.keys() | got.keys()):
        shape = tuple(wanted[name].shape) if name in wanted else "absent"
        kind, stored = got.get(name, (None, "nothing"))
        if shape != stored:
            raise ValueError(f"{path}: {shown(name)} must be {shape}, got {shown(str(stored))}")
        types = FLOATS if wanted[name].is_floating_point() else WHOLE[wanted[name].dtype]
        if kind not in types:
            raise ValueError(
                f"{path}: {shown(name)} must be {' or '.join(sorted(types))}, got {kind}"
            )
