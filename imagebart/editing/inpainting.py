"""Edit images: marked pixels are repainted, all others stay bit for bit.   [section 4.3, A.3]

inpaint     a mask of any shape, on an image of any size
repainted   … one result after another, with what makes a picture of it
outpaint    beyond the borders

What is under the mask is filled from its surroundings before anything is encoded, so no result
depends on it. Tokens with a marked pixel are masked and sampled by `process`; of what is decoded
only marked pixels are pasted back, their colours shifted to go on across the border.
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imagebart.arguments import as_int, each_of, warn_caller
from imagebart.data.images import restored, to_edit, to_pil, to_rgb, to_tensor
from imagebart.editing.harmonic import harmonic
from imagebart.editing.masks import opacity, pixel_mask
from imagebart.editing.pasting import (
    Box,
    box_around,
    boxes_over,
    fill_unknown,
    membrane,
    outward,
    softened,
)
from imagebart.editing.process import PROCESSES
from imagebart.isolation import isolated
from imagebart.known_pixels import Known, known_pixels
from imagebart.model import ImageBART
from imagebart.notation import Bool, Grid, Images
from imagebart.options import EditingOptions, InpaintOptions, Marks, OutpaintOptions, with_options
from imagebart.sampling import Step, generator_of, image_seeds
from imagebart.streaming import WORDS, batches

MASK_OPTIONS = ("context", "feather", "invert_mask")
"""Options of the mask, which `MaskedImage` takes; others are the process's."""
EMPTY = "the mask is empty: nothing is repainted, the result is the image"
"""The warning."""


@with_options
@isolated
def inpaint(
    model: ImageBART,
    image: Image.Image,
    mask: Marks,
    num_images: int = 1,
    *,
    box: Box | None = None,
    **options: Unpack[InpaintOptions],
) -> Images:
    """Images (b, 3, H, W) in [-1, 1]: `image`, repainted where the mask marks it.

    The mask is an image, an array of booleans or uint8, or a list of such layers, of the image's
    size, any; `masks.pixel_mask` says what is marked; `invert_mask` repaints all else. The results
    have that size too. The model edits a crop of its aspect ratio around the mask (`box`), or one
    window of a wide image after another (`pasting.boxes_over`). Pixels that are not marked are the
    input's, bit for bit, and nothing depends on those that are, unless a soft mask fades them in.
    An empty mask warns and returns the input. An image that 8-bit RGB cannot hold, as 16-bit grey
    or CMYK, is converted everywhere, with a warning (`images.to_edit`).

    `process` is "single" (`process.edit_steps`), "refined" (`process.refined_steps`) or "annealed"
    (`process.annealed_steps`, as released), and takes its options. A `semantic_map` covers the
    whole image. ValueError if the sizes differ, if the mask is neither image nor array, or for an
    option of another process. Images come in batches that fit the memory.
    """
    results = repainted(model, image, mask, num_images, options, box=box)
    return torch.cat([one for _, one in results])


@isolated
def repainted(
    model: ImageBART,
    image: Image.Image,
    mask: Marks,
    num_images: int,
    options: InpaintOptions,
    *,
    box: Box | None = None,
) -> Iterator[tuple["MaskedImage", Images]]:
    """(the image with its mask, one result (1, 3, H, W)), for each of the images of `inpaint`."""
    given: dict[str, Any] = {**options}
    image_seeds(given.get("seed", 0), num_images)
    of_mask = {name: given.pop(name) for name in MASK_OPTIONS if name in given}
    steps = process_of(given)
    edit = MaskedImage(model, image, mask, box=box, **of_mask)
    if not edit.marked.any():
        warn_caller(EMPTY)
    if box is None and len(boxes := edit.boxes()) > 1:
        for own in each_image(given, num_images):
            one, _ = deque(window_steps(edit, boxes, steps, **own), 1).pop()
            yield edit, one
        return
    given |= edit.maps(given.get("semantic_map"), num_images)
    x_1 = edit.x_1()
    for count, own in batches(model, num_images, given):
        last = deque(steps(model, x_1, edit.masked, count, **own), 1).pop()
        for one in edit.results(last.tokens):
            yield edit, one


def window_steps(
    edit: "MaskedImage",
    boxes: Sequence[Box],
    steps: Callable[..., Iterator[Step]],
    *,
    seed: int = 0,
    semantic_map: np.ndarray | None = None,
    **options,
) -> Iterator[tuple[Images, float]]:
    """Repaint one window after another: yields (the image (1, 3, H, W) so far, the fraction done).

    Every window goes on from what those before it have painted. `edit.marked` is what is repainted
    so far.
    """
    left, changed, (picture,) = edit.levels.copy(), np.zeros(edit.size, bool), to_pil(edit.x)
    model, context, feather = edit.model, edit.context, edit.feather
    for i, box in enumerate(boxes):
        part = MaskedImage(model, picture, left, context=context, feather=feather, box=box)
        if part.marked.any():
            given = options | part.maps(semantic_map, 1) | {"seed": window_seed(seed, i)}
            last = deque(steps(model, part.x_1(), part.masked, 1, **given), 1).pop()
            (picture,) = to_pil(part.result(last.tokens))
            changed = changed | part.marked.numpy()
            left[changed] = 0
        edit.marked = torch.from_numpy(changed)
        yield to_tensor(picture)[None], (i + 1) / len(boxes)


def process_of(options: dict[str, Any]) -> Callable[..., Iterator[Step]]:
    """The process named by the options, which loses `process` and what is None and may be;
    ValueError for an unknown process or an option of another."""
    name = options.pop("process", "single")
    if name not in tuple(PROCESSES):
        raise ValueError(f"process must be one of {tuple(PROCESSES)}, got {name!r}")
    takes = {name: inspect.signature(steps).parameters for name, steps in PROCESSES.items()}
    for option, value in list(options.items()):
        own = takes[name].get(option)
        if value is None and (own is None or own.default is None):
            del options[option]
        elif own is None:
            others = " or ".join(repr(other) for other in takes if option in takes[other])
            raise ValueError(f"{option} needs process={others}, got {name!r}")
    return PROCESSES[name]


class MaskedImage:
    """An image, the crop that the model edits, and its masked tokens.

    given     the image with its own colours and transparency (`images.as_given`)
    x         the image (1, 3, H, W) in [-1, 1], in sRGB
    marked    its pixels (H, W) to be repainted
    filled    the image without what is under the mask, which is filled from its surroundings
    x_0       the crop of `filled`, at the model's size: all that the model sees
    masked    the tokens (1, h, w) of the crop that have a marked pixel
    """

    def __init__(
        self,
        model: ImageBART,
        image: Image.Image,
        mask: Marks,
        *,
        context: int = 0,
        feather: int = 0,
        invert_mask: bool = False,
        box: Box | None = None,
    ):
        context, self.feather = as_int(context, "context"), as_int(feather, "feather")
        self.given = to_edit(image)
        image = to_rgb(self.given)
        levels = pixel_mask(mask, image.size)
        if invert_mask:
            levels = np.where(levels > 0, np.uint8(0), np.uint8(255))
        area = levels > 0 if levels.any() else levels == 0
        size = image.height, image.width
        self.model, self.size, self.levels, self.context = model, size, levels, context
        self.box = box_around(area, model.image_size) if box is None else box
        self.masked = dilated(self.box.tokens(levels > 0, model.grid), context)
        if context:
            levels = np.where(self.box.pixels(self.masked, size), np.uint8(255), levels)
        self.marked = torch.from_numpy((levels > 0) & self.box.inside(size))
        self.opacity = torch.from_numpy(opacity(levels)).to(model.device)
        self.x = to_tensor(image)[None].to(model.device)

    def boxes(self) -> list[Box]:
        """The crops that are edited one after another: that of this edit, or windows."""
        marked = self.levels > 0
        return boxes_over(marked, self.model.image_size) if marked.any() else [self.box]

    @cached_property
    def x_0(self) -> Images:
        return self.model.pixels(self.box.cut(to_pil(self.filled)[0], self.model.image_size))

    @cached_property
    def filled(self) -> Images:
        """x with harmonic fillings where marked, within the box."""
        part = ..., *self.box.part(self.size)
        filled = self.x.clone()
        filled[part] = harmonic(self.x[part], self._marked_part())
        return filled

    def _marked_part(self) -> Bool[Tensor, "1 1 H W"]:
        return self.marked[None, None, *self.box.part(self.size)].to(self.model.device)

    def x_1(self) -> Grid:
        """The tokens (1, h, w) of the crop."""
        return self.model.vqgan.encode(self.x_0)

    def known(self) -> Known:
        """The crop's pixels that are not marked, for a VQGAN that fits what it paints to them."""
        unknown = self.box.tokens(self.marked.numpy(), self.model.image_size)
        return known_pixels(self.x_0, unknown[None].to(self.x_0.device))

    def maps(self, given, num_images: int) -> dict:
        """The option `semantic_map` for the crop, from maps of the whole image."""
        if given is None:
            return {}
        each = each_of(given, num_images, np.ndarray, "semantic_map")
        (H, W), grid = self.x.shape[2:], self.model.grid

        def seen(one: np.ndarray | None) -> np.ndarray | None:
            if one is None or one.ndim != 2 or not one.size:  # what is no map is refused later
                return one
            return self.box.kinds(one, (H, W), grid)

        return {"semantic_map": [seen(one) for one in each]}

    def result(self, tokens: Grid) -> Images:
        """The image (b, 3, H, W), repainted with each of the tokens (b, h, w)."""
        return torch.cat([*self.results(tokens)])

    def results(self, tokens: Grid) -> Iterator[Images]:
        """The same one by one, to save memory: a batch (1, 3, H, W) each.

        Marked pixels are the decoder's, their colours shifted to those along the border
        (`pasting.membrane`); a soft mask fades them into the image, `feather` into its filling. All
        other pixels are the image's.
        """
        part, marked = (..., *self.box.part(self.size)), self._marked_part()
        redrawn = self.box.pixels(self.masked, self.size).to(marked.device)[None, None][part]
        fade = softened(marked, self.feather)
        known = None
        if self.model.vqgan.known is not None:
            known = self.known().expand(len(tokens), -1, -1, -1)
        for one in self.model.generate(tokens, known).split(1):
            painted = self.box.resized(one, self.size)
            painted = membrane(painted, self.x[part], marked, redrawn).clamp(-1, 1)
            painted = self.filled[part].lerp(painted, fade)
            painted = self.x[part].lerp(painted, self.opacity[part])
            result = self.x.clone()
            result[part] = torch.where(marked, painted, self.x[part])
            yield result

    def pictures(self, images: Images) -> list[Image.Image]:
        """Results as pictures like the one that was given: in its profile, and elsewhere than at
        the marked pixels with its own pixels and transparency."""
        changed = self.marked.numpy()
        return [restored(one, self.given, changed) for one in to_pil(images)]


def dilated(masked: Bool[Tensor, "1 h w"], context: int) -> Bool[Tensor, "1 h w"]:
    """The masked tokens and all tokens within `context` of them."""
    size = 2 * context + 1
    return F.max_pool2d(masked.float(), size, stride=1, padding=context) > 0


# ── completions ───────────────────────────────────────────────────────────────────────────────

HALVES = ("upper", "lower", "left", "right")
MOST_SIDE = 16_384
"""Pixels per side that outpainting may reach."""


def other_half(keep: str, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of an image of `size` (W, H) that keeps one half: "upper", "lower", "left" or
    "right"."""
    if keep not in HALVES:
        raise ValueError(f"keep must be one of {HALVES}, got {keep!r}")
    mask = np.zeros(size[::-1], bool)
    lines = mask.T if keep in ("left", "right") else mask
    half = len(lines) // 2
    lines[half:] = keep in ("upper", "left")
    lines[:half] = keep in ("lower", "right")
    return mask


@with_options
@isolated
def outpaint(
    model: ImageBART,
    image: Image.Image,
    num_images: int = 1,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    overlap: int = 0,
    **options: Unpack[EditingOptions],
) -> list[Image.Image]:
    """`image` with these pixels added, so many times; see `outpaint_steps`."""
    how = {"left": left, "right": right, "top": top, "bottom": bottom, "overlap": overlap}
    grown = []
    for own in each_image(options, num_images):
        steps = outpaint_steps(model, image, **own | how)
        last, _ = deque(steps, 1).pop()  # the canvas of every window would be kept
        grown.append(last)
    return grown


def each_image(options: Mapping[str, Any], num_images: int) -> list[dict[str, Any]]:
    """The options of each image: its seed, and what is one for all, or one each, as prompts are."""
    kinds = {name: kind for name, kind in WORDS.items() if name in options}
    each = {name: each_of(options[name], num_images, kind, name) for name, kind in kinds.items()}
    each["seed"] = image_seeds(options.get("seed", 0), num_images)
    return [{**options} | {name: each[name][i] for name in each} for i in range(num_images)]


@with_options
@isolated
def outpaint_steps(
    model: ImageBART,
    image: Image.Image,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    overlap: int = 0,
    **options: Unpack[OutpaintOptions],
) -> Iterator[tuple[Image.Image, float]]:
    """Add these pixels to each side: yields (the larger image so far, the fraction done).

    `overlap` pixels of the image are drawn anew at every side that grows, so that what it cuts can
    end or go on otherwise; at most a quarter of its shorter side.

    The model inpaints windows as large as fit into the image, which move outwards by half their
    size (`pasting.outward`). At least half of each window is known; known pixels stay, bit for bit.
    Pixels not painted yet repeat the nearest known one. Pictures are like the one that was given
    (`images.restored`). A `semantic_map` covers the result. ValueError at the first step for
    negative margins, an image that is too small, a result that is too large (`grown_size`), a seed
    that is not one number, and as in `inpaint`.
    """
    given: dict[str, Any] = {**options}
    seed = as_int(given.pop("seed", 0), "seed", 0, 2**63 - 1)
    source, margins = to_edit(image), {"left": left, "right": right, "top": top, "bottom": bottom}
    image, size = to_rgb(source), grown_size(model, source, margins)
    place = slice(top, top + image.height), slice(left, left + image.width)
    kept = kept_part(image.size, margins, overlap)
    canvas, known = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    canvas[place], known[place] = np.asarray(image), kept
    if known.all():
        warn_caller("no side grows: the image is returned as it is")
    boxes = list(outward(known, model.image_size))
    for i, box in enumerate(boxes):
        so_far = Image.fromarray(fill_unknown(canvas, known))
        yield restored(so_far, source, ~kept, at=(left, top)), i / len(boxes)
        one = window_seed(seed, i)
        window = inpaint(model, so_far, ~known, box=box, seed=one, **given)
        new = box.inside(size) & ~known
        canvas[new], known = np.asarray(to_pil(window)[0])[new], known | new
    yield restored(Image.fromarray(canvas), source, ~kept, at=(left, top)), 1.0


def kept_part(size: tuple[int, int], margins: dict[str, int], overlap: int) -> np.ndarray:
    """The pixels (H, W) of an image of `size` (W, H) that stay: all but `overlap` at the sides that
    grow."""
    as_int(overlap, "overlap", 0, min(size) // 4)
    (W, H), cut = size, {side: overlap if margin else 0 for side, margin in margins.items()}
    kept = np.zeros((H, W), bool)
    kept[cut["top"] : H - cut["bottom"], cut["left"] : W - cut["right"]] = True
    return kept


def grown_size(model: ImageBART, image: Image.Image, margins: dict[str, int]) -> tuple[int, int]:
    """(H, W) with the margins; ValueError for negative margins, or a side out of range."""
    for name, margin in margins.items():
        as_int(margin, name)
    if min(image.size) * 8 < min(model.image_size):
        least = -(-min(model.image_size) // 8)
        raise ValueError(f"an image must have at least {least} pixels a side, got {image.size}")
    H = image.height + margins["top"] + margins["bottom"]
    W = image.width + margins["left"] + margins["right"]
    if max(H, W) > MOST_SIDE:
        raise ValueError(f"sides must be at most {MOST_SIDE} with the margins, got {(H, W)}")
    return H, W


def window_seed(seed: int, index: int) -> int:
    """A seed for every window: the seed itself for the first."""
    if index == 0:
        return seed
    return int(torch.randint(2**63 - 1, (), generator=generator_of(seed, index, 0, "window")))
