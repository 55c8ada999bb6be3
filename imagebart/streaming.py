"""Thousands of images: the chain, a few images at a time.

A seed is an image whatever is drawn beside it (`sampling`), so a long list of images can be cut
anywhere: into batches that fit the memory, into a part for each of many processes. What belongs to
an image (its seed, prompt, class, map) is cut along with it. On a CPU images are the same bit for
bit however they are cut; on a GPU as far as its kernels round alike for any number of rows.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import torch

from imagebart.arguments import each_of
from imagebart.denoiser import Denoiser
from imagebart.distributed import split
from imagebart.guidance import encode_condition
from imagebart.isolation import isolated
from imagebart.model import ImageBART
from imagebart.notation import Grid
from imagebart.options import SamplingOptions, rows, with_options
from imagebart.sampling import image_seeds

MOST = {"cpu": 16, "cuda": 64}
"""Images in a batch at most: more only wait for the slowest of them."""

SHARE = 8
"""A batch may take one part in so many of the device's memory."""

WORDS = {name: row.one for name, row in rows(SamplingOptions).items() if row.option.per == "image"}
"""Options that can differ by image, and the type of one value."""


@with_options
@isolated
def sample_stream(
    model: ImageBART,
    num_images: int = 1,
    *,
    batch: int | None = None,
    part: range | None = None,
    **options: Unpack[SamplingOptions],
) -> Iterator[Grid]:
    """x_1 of the images `part` (all of them) of `num_images`, `batch` at a time; in order.

    See `ImageBART.sample_stream`. Every image's options are checked before the first is sampled:
    ValueError at the first batch.
    """
    cut: dict[str, Any] = {"batch": batch, "part": part, "draw_classes": True}
    for count, own in batches(model, num_images, options, **cut):
        last = deque(model.sample_steps(count, **own), 1).pop()
        yield last.tokens


def batches(
    model: ImageBART,
    num_images: int,
    options: Mapping[str, object],
    *,
    batch: int | None = None,
    part: range | None = None,
    draw_classes: bool = False,
    called: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, dict]]:
    """(how many, their options) of `batch` images after another, as many as fit unless given.

    With `draw_classes`, what nothing is said of has a class by its seed; `called` as in
    `encode_condition`. ValueError at the first unless the options of all fit the model, and `part`
    is a range of them, without gaps.
    """
    rest: dict[str, Any] = {**options}
    each = {"seed": image_seeds(rest.pop("seed", 0), num_images)}
    called = called or {}
    words = {
        name: each_of(rest.pop(name, None), num_images, kind, called.get(name, name))
        for name, kind in WORDS.items()
    }
    require_readable(model, words, draw_classes, guidance=rest.get("guidance"), called=called)
    each |= words
    part = range(num_images) if part is None else part
    require_part(part, num_images)
    for images in split(part, batch_that_fits(model) if batch is None else batch):
        cut = {name: [values[i] for i in images] for name, values in each.items()}
        yield len(images), cut | rest


def require_readable(
    model: ImageBART, words: dict[str, list], draw_classes: bool, **how: Any
) -> None:
    """ValueError unless the model can be told these words, {option: each image's}, as by
    `encode_condition`: what is said of several images is read once, and little at a time."""
    lists = words.values()
    different = [*{tuple(map(id, row)): row for row in zip(*lists, strict=True)}.values()]
    for part in split(range(len(different)), MOST["cuda"]):
        columns = zip(*(different[i] for i in part), strict=True)
        own: dict[str, Any] = {name: [*each] for name, each in zip(words, columns, strict=True)}
        if len(different) == 1:  # one for all: messages show it as it was given
            own = {name: value for name, (value,) in own.items()}
        seeds = [0] * len(part) if draw_classes else None
        encode_condition(model, len(part), seeds=seeds, **how, **own)


def require_part(part: range, num_images: int) -> None:
    """ValueError unless `part` is a stretch of 0 .. num_images - 1, which may be empty."""
    fits = isinstance(part, range) and part.step == 1
    if not fits or not 0 <= part.start <= num_images or not 0 <= part.stop <= num_images:
        raise ValueError(f"part must be a range of step 1 in 0..{num_images}, got {part!r:.60}")


# ── how many at a time ────────────────────────────────────────────────────────────────────────


def batch_that_fits(model: ImageBART) -> int:
    """Images in a batch: as many as an eighth of the device's memory holds, between 1 and 16 on a
    CPU, 1 and 64 elsewhere.

    The memory is all that the device has, not what is free just now: one machine always cuts alike.
    """
    most = MOST.get(model.device.type, MOST["cuda"])
    largest = max(bytes_of_an_image(denoiser) for denoiser in model.denoisers.values())
    return max(1, min(most, bytes_of_memory(model.device) // SHARE // largest))


def bytes_of_an_image(denoiser: Denoiser) -> int:
    """What decoding holds for one image at this scale: n·K numbers in float32 four times (noise,
    logits, the draft's, a working copy), and for each of the decoder's layers the keys and
    values of the sequence, of the encoder's memory, and all that twice, since guidance decodes
    every image with and without its condition."""
    shape, size = denoiser.config, next(denoiser.parameters()).element_size()
    slots = shape.n + sum(condition.length for condition in shape.conditions.values())
    keys_values = 2 * slots * shape.heads * shape.head_width * size
    sources = 2 if denoiser.sees_x_t else 1
    return 4 * 4 * shape.n * denoiser.K + 2 * sources * shape.decoder_depth * keys_values


def bytes_of_memory(device: torch.device) -> int:
    """Bytes of memory that the device has; 8 GiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return 2**33
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
