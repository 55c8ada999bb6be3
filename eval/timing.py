"""Timing: seconds and memory of a call, and the hardware's limits."""

import resource
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch

from imagebart import ImageBART
from imagebart.denoiser import Denoiser

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in one of ru_maxrss


def open_unconditional(source: str | Path, device: torch.device) -> ImageBART:
    """A model whose samples are unconditional, so that a pass reads every image once."""
    model = ImageBART.from_pretrained(source, device=device)
    model.draws_class = False
    return model


def timed(run: Callable, repeats: int, device: torch.device, batch: int) -> dict:
    """Seconds of `run`: median and 95th percentile; the first call measures memory only."""
    row = memory_growth(run, device)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        settle(device)
        seconds.append(time.perf_counter() - began)
    median, high = map(float, np.percentile(seconds, [50, 95]))
    return {"median_s": median, "p95_s": high, "images_per_s": batch / median, **row}


def with_passes(clock: Callable[[Callable], dict], run: Callable) -> dict:
    """The timing of `run(on_pass=…)`, and the number of decoder passes in one call."""
    calls, passes = count(), count()
    row = clock(lambda: (next(calls), run(on_pass=lambda t, at: next(passes))))
    return row | {"passes": next(passes) // next(calls)}


def memory_growth(run: Callable, device: torch.device) -> dict:
    """Growth of peak memory during one call.

    On a GPU: peak of allocated memory minus the memory allocated before. On a CPU: growth of the
    process's largest resident size, which never falls, so a call that needs less than an earlier
    one shows 0.
    """
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        settle(device)
        return {"peak_memory_growth_bytes": torch.cuda.max_memory_allocated(device) - before}
    before = largest_resident_bytes()
    run()
    return {"peak_rss_growth_bytes": largest_resident_bytes() - before}


def largest_resident_bytes() -> int:
    return RSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def settle(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def ceilings(device: torch.device, dtype: torch.dtype) -> dict:
    """Bytes a second of a large copy, read and written, and operations a second of a product."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    a = torch.ones(2048, 2048, device=device, dtype=dtype)
    copy = timed(lambda: target.copy_(source), 5, device, 1)["median_s"]
    product = timed(lambda: a @ a, 5, device, 1)["median_s"]
    return {
        "bytes_per_s": 2 * source.numel() * source.element_size() / copy,
        "flops_per_s": 2 * 2048**3 / product,
    }


def roofline(denoiser: Denoiser, seconds: float, ceiling: dict) -> dict:
    """The share of each limit that a pass over one token reaches: bandwidth and operations."""
    layers = (denoiser.decoder, denoiser.head)
    weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim > 1)
    size = next(denoiser.parameters()).element_size()
    return {
        "bandwidth": weights * size / seconds / ceiling["bytes_per_s"],
        "peak": 2 * weights / seconds / ceiling["flops_per_s"],
    }
