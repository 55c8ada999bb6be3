"""Weights in a byte each: a matrix as whole numbers from -127 to 127 and a scale for each row.

    W_ij ≈ s_i · q_ij,    s_i = max_j |W_ij| / 127

so that no weight moves by more than s_i / 2. A file holds q under the matrix's name and s, rows×1,
beside it under the name and `SCALE`. Computing is in floating point: matrices are restored when
they are loaded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".row_scale"
"""Suffix of the name of a matrix's scales."""


def quantise_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every floating-point matrix as q and s; all other floating-point tensors as float16."""
    stored: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if x.is_floating_point() and x.ndim == 2:
            scale = x.float().abs().amax(1, keepdim=True) / 127
            stored[name] = (x.float() / scale.clamp(min=1e-30)).round().to(torch.int8)
            stored[name + SCALE] = scale
        else:
            stored[name] = x.half() if x.is_floating_point() else x
    return stored


def restore_rows(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, its matrices as s_i · q_ij in float32."""
    return {
        name: stored[name + SCALE] * x.float() if name + SCALE in stored else x
        for name, x in stored.items()
        if not name.endswith(SCALE)
    }


def without_scales(
    header: Mapping[str, tuple[str, tuple[int, ...]]],
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (type, shape)} of a file as if its matrices were float32: an I8 matrix that has scales
    of its rows counts as F32. Scales that belong to no such matrix stay, and are refused as names
    that nobody knows."""
    plain = dict(header)
    for name, (kind, shape) in header.items():
        if kind == "I8" and header.get(name + SCALE) == ("F32", (*shape[:1], 1)):
            plain[name] = "F32", shape
            del plain[name + SCALE]
    return plain
