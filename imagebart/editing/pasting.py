"""Crop what the model edits, and paste its result at marked pixels only.

An image of any size is edited at the model's: a box of the model's aspect ratio around the mask is
cropped, resized, edited, resized back, and pasted where pixels are marked.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imagebart.editing.harmonic import harmonic, part_around
from imagebart.notation import Bool, Float, Images, Int

KNOWN = 1 / 4
"""Part of a crop that is not marked, at least: what is repainted goes on from there."""
MOST_WINDOWS = 16
"""Windows that one edit may take."""
FADE = 5
"""Pixels inside the border over which a step at it is spread."""
MISS, EDGE = 0.5, 0.3
"""Differences of colour, in [-1, 1], beyond which the decoder has painted another thing, or an edge
(`trust`). Less leaves more of a step at the border, more spreads colours of what is not there."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of an image; it may extend beyond the borders."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The crop, resized to `size` (H, W); beyond the borders edge pixels are repeated.

        One side after the other, one that goes beyond the borders last: what is repeated is small
        by then, however long the image.
        """
        rows, columns = self.part((image.height, image.width))
        pixels = np.asarray(image)[rows, columns]
        sides = [(1, columns, self.left, self.width), (0, rows, self.top, self.height)]
        if self.width > columns.stop - columns.start:
            sides.reverse()
        for axis, known, start, length in sides:
            places = np.arange(start, start + length).clip(known.start, known.stop - 1)
            part = Image.fromarray(pixels.take(places - known.start, axis))
            wanted = (size[1], part.height) if axis else (part.width, size[0])
            pixels = np.asarray(part.resize(wanted, Image.Resampling.LANCZOS))
        return Image.fromarray(pixels)

    def kinds(self, kinds: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
        """The crop of a semantic map (H', W') of an image of `size` (H, W), resampled to 8×8 places
        per token of `grid` (h, w); beyond the borders edge places are repeated."""
        at = []
        for start, length, whole, places, tokens in zip(
            (self.top, self.left), (self.height, self.width), size, kinds.shape, grid, strict=True
        ):
            middle = start + (np.arange(8 * tokens) + 0.5) * length / (8 * tokens)
            at.append((middle * places / whole).astype(int).clip(0, places - 1))
        return kinds[np.ix_(*at)]

    def tokens(self, mask: np.ndarray, grid: tuple[int, int]) -> Bool[Tensor, "1 h w"]:
        """The masked tokens of `grid` (h, w): those with at least one masked pixel (H, W). Tokens
        beyond the borders are as the edge pixels that are repeated there."""
        (h, w), (H, W) = grid, mask.shape
        rows = [mask[_touched(self.top, self.height, i, h, H)].any(0) for i in range(h)]
        columns = [_touched(self.left, self.width, j, w, W) for j in range(w)]
        across = np.stack(rows)
        return torch.from_numpy(np.stack([across[:, c].any(1) for c in columns], axis=1))[None]

    def pixels(self, masked: Bool[Tensor, "1 h w"], size: tuple[int, int]) -> Bool[Tensor, "H W"]:
        """The pixels of an image of `size` (H, W) in masked tokens."""
        (h, w), (H, W) = masked.shape[1:], size
        inside = torch.zeros(H, W, dtype=torch.bool)
        rows = torch.arange(max(self.top, 0), min(self.top + self.height, H))
        columns = torch.arange(max(self.left, 0), min(self.left + self.width, W))
        i = (rows - self.top) * h // self.height
        j = (columns - self.left) * w // self.width
        inside[rows[:, None], columns] = masked[0].cpu()[i[:, None], j]
        return inside

    def inside(self, size: tuple[int, int]) -> np.ndarray:
        """The pixels of an image of `size` (H, W) in the box, as booleans."""
        inside = np.zeros(size, bool)
        inside[self.part(size)] = True
        return inside

    def part(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """(rows, columns) of an image of `size` (H, W) in the box."""
        (H, W), bottom, right = size, self.top + self.height, self.left + self.width
        return slice(max(self.top, 0), min(bottom, H)), slice(max(self.left, 0), min(right, W))

    def resized(
        self, painted: Float[Tensor, "b 3 h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b 3 H W"]:
        """Crops at the model's size as pixels of their `part` of an image of `size` (H, W)."""
        rows, columns = self.part(size)
        within = (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )
        if painted.shape[2:] == (self.height, self.width):
            return painted[..., *within]
        return smoothly(painted, (self.height, self.width), within)


def smoothly(
    x: Float[Tensor, "b 3 h w"],
    size: tuple[int, int],
    within: tuple[slice, slice] = (slice(None), slice(None)),
) -> Float[Tensor, "b 3 H W"]:
    """`within` x at another size, bicubic, without the rings beside edges: no pixel leaves the
    range of the nine around its place."""
    scales = [bicubic(n, N) for n, N in zip(x.shape[2:], size, strict=True)]
    (rows, i), (columns, j) = (
        (weights[part].to(x), nearest[part].to(x.device))
        for (weights, nearest), part in zip(scales, within, strict=True)
    )
    low, high = -F.max_pool2d(-x, 3, 1, 1), F.max_pool2d(x, 3, 1, 1)
    low, high = (bound[:, :, i[:, None], j] for bound in (low, high))
    return (rows @ x @ columns.T).clamp(low, high)


def bicubic(n: int, size: int) -> tuple[Float[Tensor, "N n"], Int[Tensor, " N"]]:
    """(the weights by which `size` points are made of n, the nearest of these to each point)."""
    weights = F.interpolate(torch.eye(n)[None, None], (size, n), mode="bicubic", antialias=True)
    nearest = F.interpolate(torch.arange(n)[None, None].float(), size, mode="nearest-exact")
    return weights[0, 0], nearest[0, 0].long()


def box_around(mask: np.ndarray, size: tuple[int, int]) -> Box:
    """The crop that a model of `size` (h, w) edits: the largest box of its aspect ratio.

    It lies within the image, or is larger if the mask (H, W) does not fit, or if less than `KNOWN`
    of what it holds, and than half of that share in the image, were not marked. It is centred on
    the mask as far as the borders allow.
    """
    (H, W), (h, w) = mask.shape, size
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    tall, wide = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    scale, most = max(min(H / h, W / w), tall / h, wide / w), max(H / h, W / w)
    wanted = min(KNOWN, (1 - mask.mean()) / 2)
    while True:
        height, width = math.ceil(h * scale - 1e-9), math.ceil(w * scale - 1e-9)
        top = _placed((rows[0] + rows[-1] + 1 - height) // 2, height, H)
        left = _placed((columns[0] + columns[-1] + 1 - width) // 2, width, W)
        box = Box(left, top, width, height)
        if scale >= most or 1 - mask[box.part((H, W))].mean() >= wanted:
            return box
        scale = min(1.05 * scale, most)


def boxes_over(mask: np.ndarray, size: tuple[int, int]) -> list[Box]:
    """The crops that a model of `size` (h, w) edits one after another, until all that the mask
    (H, W) marks is painted: the box around it, if that is not higher than the image.

    Else windows as high as the image, each by half its width at most beside another: first the one
    of which most is known, then to the right and to the left of it. What lies above each other in
    an image is one scene, what lies beside each other goes on: so in a high image it is the box,
    and so it is if there were more than `MOST_WINDOWS`.
    """
    (H, W), (h, w) = mask.shape, size
    box, width = box_around(mask, size), math.ceil(w * H / h - 1e-9)
    if box.height <= H or width > W:
        return [box]
    marked = np.flatnonzero(mask.any(0)).tolist()
    start = max(0, min(marked[0] - width // 2, W - width))
    places = along(start, min(W, max(marked[-1] + 1 + width // 2, start + width)), width)
    windows = [Box(left, 0, width, H) for left in places]
    windows = [one for one in windows if mask[one.part((H, W))].any()]
    if not 1 < len(windows) <= MOST_WINDOWS:
        return [box]
    unknown = [mask[one.part((H, W))].mean() for one in windows]
    first = unknown.index(min(unknown))
    return [*windows[first:], *windows[:first][::-1]]


def along(start: int, stop: int, length: int) -> list[int]:
    """Where parts of this length begin that overlap by half, or more, from start to stop."""
    return [*range(start, stop - length, max(length // 2, 1)), stop - length]


def outward(known: np.ndarray, size: tuple[int, int]) -> Iterator[Box]:
    """Boxes of the aspect ratio of `size` (h, w) that cover the unknown area around a known
    rectangle: right, left, above, below. Each is as large as fits into the rectangle, and at least
    half known once those before it are painted. ValueError if that is less than 2×2 pixels."""
    (H, W), (h, w) = known.shape, size
    rows, columns = (np.flatnonzero(known.any(axis)).tolist() for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = min((bottom - top) / h, (right - left) / w)
    height, width = int(h * scale + 1e-9), int(w * scale + 1e-9)
    if min(height, width) < 2:
        raise ValueError(
            f"what is known must hold 2×2 pixels, or more, of the model's shape {h}×{w}, "
            f"got {bottom - top}×{right - left} pixels"
        )

    while right < W:
        right = min(right + width // 2, W)
        yield from (Box(right - width, y, width, height) for y in along(top, bottom, height))
    while left > 0:
        left = max(left - width // 2, 0)
        yield from (Box(left, y, width, height) for y in along(top, bottom, height))
    while top > 0:
        top = max(top - height // 2, 0)
        yield from (Box(x, top, width, height) for x in along(0, W, width))
    while bottom < H:
        bottom = min(bottom + height // 2, H)
        yield from (Box(x, bottom - height, width, height) for x in along(0, W, width))


def fill_unknown(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) with unknown ones copied from the nearest known pixel of their row, or of
    their column if the row has none."""
    column, row = _nearest(known), _nearest(np.asarray(known.any(1))[None]).T
    across = np.take_along_axis(pixels, column[..., None], axis=1)
    return across[row[:, 0]]


def _nearest(known: np.ndarray) -> np.ndarray:
    """For each place of each row the nearest known place, or itself if none is known."""
    place = np.broadcast_to(np.arange(known.shape[1]), known.shape)
    before = np.maximum.accumulate(np.where(known, place, -(10**9)), axis=1)
    after = np.minimum.accumulate(np.where(known, place, 10**9)[:, ::-1], axis=1)[:, ::-1]
    nearest = np.where(place - before <= after - place, before, after)
    return np.where(known.any(1, keepdims=True), nearest, place)


def _placed(start: int, length: int, whole: int) -> int:
    """A start such that the length lies within [0, whole) if it fits, else is centred on it."""
    return int(min(max(start, 0), whole - length)) if length <= whole else (whole - length) // 2


def _touched(start: int, length: int, i: int, count: int, whole: int) -> slice:
    """The pixels of the i-th of `count` equal parts of start … start + length; of one that lies
    beyond 0 … whole, the pixel at that end."""
    first = math.floor(start + i * length / count + 1e-6)
    last = math.ceil(start + (i + 1) * length / count - 1e-6)
    first = min(max(first, 0), whole - 1)
    return slice(first, max(min(last, whole), first + 1))


def membrane(
    painted: Images,
    x: Float[Tensor, "1 3 H W"],
    marked: Bool[Tensor, "1 1 H W"],
    redrawn: Bool[Tensor, "1 1 H W"],
) -> Images:
    """The painted pixels, shifted where `marked` so that their colours go on across its border;
    `redrawn` are the pixels of masked tokens.

    The shift is the smoothest that equals x - painted at the known pixels along the border (the
    Poisson image editing of Pérez et al. 2003), as far as they show by how much the decoder misses
    a colour (`trust`). What changes from pixel to pixel along the border is not smooth, and such a
    shift dies out before the first marked pixel. So next to the border it is blended with
    `step_of_border`.
    """
    if not marked.any():
        return painted
    whole, part = painted.clone(), part_around(marked)
    painted, x, marked, redrawn = (one[part] for one in (painted, x, marked, redrawn))
    trusted = trust(painted, x, marked, redrawn)
    shift = harmonic((x - painted) * trusted, marked)
    step, weight = step_of_border(painted, x, marked, trusted)
    whole[part] = painted + shift.lerp(step, weight)
    return whole


def trust(
    painted: Images,
    x: Float[Tensor, "1 3 H W"],
    marked: Bool[Tensor, "1 1 H W"],
    redrawn: Bool[Tensor, "1 1 H W"],
) -> Float[Tensor, "b 1 H W"]:
    """How far, 0 to 1, a known pixel beside marked ones shows the decoder's miss of a colour.

    Of a known token the decoder paints what is there, and its miss is one of colour: 1. A token
    that is `redrawn` knows nothing of its unmarked pixels. A large miss is another thing in their
    place: a bird that stands before a sky repainted without it. And where what is painted has an
    edge between the two, as between a sky and its land, a miss on one side says nothing of the
    other. At pixels that are not beside marked ones the value has no meaning.
    """
    beyond = marked.to(x.dtype)
    beside = four_neighbours(beyond).clamp(min=1)
    pairs = zip(neighbours(painted), neighbours(beyond), strict=True)
    same_side = sum(there * likeness(painted, other, EDGE) for other, there in pairs)
    return (likeness(painted, x, MISS) * same_side / beside).where(redrawn, 1)


def likeness(
    a: Float[Tensor, "#b 3 H W"], b: Float[Tensor, "#b 3 H W"], width: float
) -> Float[Tensor, "b 1 H W"]:
    """exp(-d² / 2 width²) of pixels with a root-mean-square difference d of their colours."""
    return ((a - b).square().mean(1, keepdim=True) / (-2 * width**2)).exp()


def step_of_border(
    painted: Images,
    x: Float[Tensor, "1 3 H W"],
    marked: Bool[Tensor, "1 1 H W"],
    trusted: Float[Tensor, "b 1 H W"],
) -> tuple[Images, Float[Tensor, "1 1 H W"]]:
    """(the shifts that close the step at the border, their weights) of marked pixels.

    A marked pixel beside known ones lacks the mean of what each of them is more than it, as far as
    that one is trusted; those behind it lack what it does. The weight falls from the border inwards
    and is 0 beyond `FADE` pixels.
    """
    reached = last = ~marked
    step, weight = torch.zeros_like(painted), torch.zeros_like(x[:, :1])
    trusted = trusted.where(last, 0)
    lacks = four_neighbours((x * trusted).where(last, 0)) - four_neighbours(trusted) * painted
    for depth in range(1, FADE + 1):
        count = four_neighbours(last.to(x.dtype))
        lacks, last = lacks / count.clamp(min=1), ~reached & (count > 0)
        reached = reached | last
        step = lacks.where(last, step)
        weight = weight.masked_fill(last, 1 - depth / (FADE + 1))
        lacks = four_neighbours(lacks.where(last, 0))
    return step, weight


def four_neighbours(v: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
    """The sum of each pixel's four neighbours; 0 beyond the edge."""
    total = torch.zeros_like(v)
    total[..., 1:] = v[..., :-1]
    total[..., :-1] += v[..., 1:]
    total[..., 1:, :] += v[..., :-1, :]
    total[..., :-1, :] += v[..., 1:, :]
    return total


def neighbours(v: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b c H W"]]:
    """Each pixel's neighbour above, below, to the left and to the right; 0 beyond the edge."""
    v = F.pad(v, (1, 1, 1, 1))
    return [v[..., :-2, 1:-1], v[..., 2:, 1:-1], v[..., 1:-1, :-2], v[..., 1:-1, 2:]]


def softened(marked: Bool[Tensor, "1 1 H W"], width: int) -> Float[Tensor, "1 1 H W"]:
    """1 where marked, rising from the border inwards over `width` pixels; 0 elsewhere."""
    depth = torch.zeros(marked.shape, device=marked.device)
    if not marked.any():
        return depth
    part = part_around(marked)
    own, inner = depth[part], marked[part].float()
    for _ in range(width):
        if not inner.any():
            break
        own += inner
        inner = -F.max_pool2d(-inner, 3, 1, 1)
    own += inner
    return depth / (width + 1)
