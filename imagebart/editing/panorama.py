"""Images wider than the training size: a sliding window of that size.   [section 4.2]

At every scale t = T .. 2 the denoiser reads a window of x_t, and the tokens of x_{t-1} that are
already sampled in it:

    fast     overlapping windows, each at least half sampled; the rest is sampled in one decoding.
             Cost grows linearly with the area.
    exact    each token is sampled in the window centred on it, as far as the borders allow: the
             sliding window of the paper and of taming-transformers. One window per token.

Noise belongs to positions of the image, not of a window: both modes share x_T and Gumbel noise, and
a panorama of the training size is the sample of that seed.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from einops import rearrange
from torch import Tensor

from imagebart.arguments import as_int, is_several, to_builtin
from imagebart.choice import Filter, draw
from imagebart.conditions import Condition
from imagebart.decodable import Decodable
from imagebart.denoiser import Denoiser
from imagebart.guidance import EncodedCondition, encode_condition, filters
from imagebart.isolation import isolated
from imagebart.model import ImageBART
from imagebart.notation import Bool, Float, Grid, Images, Int, Logits, Tokens
from imagebart.options import Classes, PanoramaOptions, Texts, with_defaults, with_options
from imagebart.sampling import Step, filters_and_decoder, generator_of, gumbel
from imagebart.sampling import uniform_tokens as uniform

MODES = ("fast", "exact")


@with_options
@isolated
def panorama(
    model: ImageBART, width: int, height: int | None = None, **options: Unpack[PanoramaOptions]
) -> Images:
    """An image (1, 3, height, width) in [-1, 1]; see `panorama_steps`."""
    last = deque(panorama_steps(model, width, height, **options), 1).pop()
    return wide_image(model, last.tokens, width, height, options.get("wrap", False))


def wide_image(
    model: ImageBART, tokens: Grid, width: int, height: int | None = None, wrap: bool = False
) -> Images:
    """The image (1, 3, height, width) of wide tokens, in [-1, 1]; the model's height for None."""
    height = model.image_size[0] if height is None else height
    return decode_wide(model, tokens, wrap)[:, :, :height, :width]


@with_options
@isolated
def panorama_steps(
    model: ImageBART,
    width: int,
    height: int | None = None,
    **options: Unpack[PanoramaOptions],
) -> Iterator[Step]:
    """The chain over a wide image; yields x_{t-1} after every window (every row, if exact).

    Tokens are (1, h, w), those of x_t where x_{t-1} is not sampled yet; `done` is the fraction of
    the chain. `width` and `height` are pixels, at least the training size; if they are no multiples
    of f, the tokens cover a larger image, which `panorama` crops.

    Between two prompts or classes log-probabilities are interpolated (`ConditionsAlongX`). With
    `wrap` the width must be a multiple of f. The `method` is that of windows: mode "exact" decodes
    token by token. ValueError at the first step if a size or an option is out of range.
    """
    given = with_defaults(PanoramaOptions, options)
    mode, wrap, seed = (given.pop(name) for name in ("mode", "wrap", "seed"))
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    size = wide_grid(model, width, height, wrap)
    noise = WideNoise(seed, model, size)  # checks the seed, which conditions are drawn by
    filters, decode = filters_and_decoder(model.T, given)
    encoded = encode_along_x(model, size[1], noise.seed, **given)
    conditions = ConditionsAlongX(encoded, size[1], wrap)
    x = noise.tokens()
    yield Step(model.T, x[None], 0.0)
    for t in range(model.T, 1, -1):
        scale = WideScale(model.denoisers[t], filters[t], conditions, x, noise, wrap)
        pieces = scale.windows(decode) if mode == "fast" else scale.tokens()
        for part in pieces:
            yield Step(t - 1, scale.x_prev[None].clone(), (model.T - t + part) / (model.T - 1))
        x = scale.x_prev


def wide_grid(model: ImageBART, width: int, height: int | None, wrap: bool) -> tuple[int, int]:
    """The token grid (h, w) that covers an image of this size in pixels; ValueError if it is
    smaller than the training size, or cannot be wrapped."""
    H, W = model.image_size
    height = H if height is None else height
    for name, pixels, least in (("width", width, W), ("height", height, H)):
        if as_int(pixels, name) < least:
            raise ValueError(f"{name} must be at least the model's {least}, got {pixels}")
    f, window = model.vqgan.f, model.grid[1]
    size = -(-height // f), -(-width // f)
    if wrap and size[1] < window + window // 2:
        least = (window + window // 2) * f
        raise ValueError(f"width must be at least {least} to wrap around, got {width}")
    if wrap and width % f:
        raise ValueError(f"width must be a multiple of {f} to wrap around, got {width}")
    return size


# ── one scale ─────────────────────────────────────────────────────────────────────────────────


class WideScale:
    """p_θ^{t-1} over a wide x_t, window by window; `x_prev` (h, w) is valid where `drawn`."""

    def __init__(
        self,
        denoiser: Denoiser,
        choose: Filter,
        conditions: "ConditionsAlongX",
        x_t: Int[Tensor, "h w"],
        noise: "WideNoise",
        wrap: bool,
    ):
        self.denoiser, self.choose, self.conditions = denoiser, choose, conditions
        self.noise, self.wrap = noise, wrap
        self.x_t, self.x_prev = x_t, x_t.clone()
        self.drawn = torch.zeros_like(x_t, dtype=torch.bool)

    def windows(self, decode) -> Iterator[float]:
        """fast: window after window, with the tokens drawn before it as known tokens."""
        (h, w), (H, W) = self.denoiser.config.grid, self.x_t.shape
        tops = origins(H, h, False, self.noise.strides(self.denoiser.t, h, "down"))
        lefts = origins(W, w, self.wrap, self.noise.strides(self.denoiser.t, w, "along"))
        places = list(itertools.product(tops, lefts))
        for i, (top, left) in enumerate(places, 1):
            at = self.view(top, left)
            scale, choose, condition = self.conditions.at(self.denoiser, self.choose, at[1])
            flat = (part[at].reshape(1, -1) for part in (self.x_t, self.drawn, self.x_prev))
            x_t, known, x_known = flat
            noise = self.noise.window(self.denoiser.t, *at).to(x_t.device)
            new = decode(scale, x_t, noise, choose, condition, known, x_known)
            self.x_prev[at] = new.reshape(h, w)
            self.drawn[at] = True
            yield i / len(places)

    def tokens(self) -> Iterator[float]:
        """exact: token after token, each in the window centred on it."""
        (h, w), (H, W) = self.denoiser.config.grid, self.x_t.shape
        for row in range(H):
            top, here = centred(row, h, H), None
            for column in range(W):
                left = centred(column, w, 10**9 if self.wrap else W)
                if left != here:  # another window: read from its start
                    here, read = left, 0
                    at = self.view(top, left)
                    scale, choose, condition = self.conditions.at(self.denoiser, self.choose, at[1])
                    decoding = scale.start(self.x_t[at].reshape(1, -1), condition)
                    noise = self.noise.window(self.denoiser.t, *at).to(self.x_t.device)
                i = (row - top) * w + column - left
                unread = torch.arange(read, i + 1, device=self.x_t.device)[None]
                logits = scale.step(self.x_prev[at].reshape(1, -1), unread, decoding)[:, -1:]
                self.x_prev[row, column] = draw(logits, noise[:, i : i + 1], choose)[0, 0]
                read = i + 1
            yield (row + 1) / H

    def view(self, top: int, left: int) -> tuple[Int[Tensor, "h 1"], Int[Tensor, " w"]]:
        """(rows, columns) of a window for indexing; columns wrap around."""
        (h, w), device = self.denoiser.config.grid, self.x_t.device
        rows = torch.arange(top, top + h, device=device)[:, None]
        return rows, torch.arange(left, left + w, device=device) % self.x_t.shape[1]


def origins(size: int, window: int, wrap: bool, strides: Iterator[int] | None = None) -> list[int]:
    """Starts of windows that cover `size`: half a window apart or by `strides`, the last at the
    border. With `wrap` one more lies across both ends, between tokens that are drawn."""
    half = window // 2 or 1
    strides = itertools.repeat(half) if strides is None else strides
    last, starts = size - window - (half if wrap else 0), [0]
    while starts[-1] < last:
        starts.append(min(starts[-1] + next(strides), last))
    return [*starts, last + window - half // 2] if wrap else starts


def centred(i: int, window: int, size: int) -> int:
    """The start of the window centred on position i, as far as the borders allow."""
    return min(max(i - window // 2, 0), size - window)


# ── noise of positions ────────────────────────────────────────────────────────────────────────


class WideNoise:
    """x_T and the Gumbel noise of a wide image, in blocks of the training size.

    Block (0, 0) is the noise of a sample of this seed. Blocks are generated when a window first
    overlaps them and freed when none does, so that memory does not grow with the image.
    """

    def __init__(self, seed: int, model: ImageBART, size: tuple[int, int]):
        self.seed = as_int(seed, "seed", 0, 2**63 - 1)
        self.K, self.T, self.device = model.K, model.T, model.device
        self.grid, self.size = model.grid, size
        self.blocks: dict[tuple[int, int, int], Tensor] = {}

    def tokens(self) -> Int[Tensor, "h w"]:
        """x_T."""
        (h, w), (H, W) = self.grid, self.size
        rows = []
        for i in range(-(-H // h)):
            blocks = [
                uniform([self.block_seed(i, j)], self.T, h * w, self.K).reshape(h, w)
                for j in range(-(-W // w))
            ]
            rows.append(torch.cat(blocks, dim=1))
        return torch.cat(rows)[:H, :W].to(self.device)

    def strides(self, t: int, window: int, way: str) -> Iterator[int]:
        """Random distances between the windows of scale t: a quarter to a half of a window.

        A denoiser draws fewer objects near the edges of a window; equal distances at every scale
        would show as a periodic pattern.
        """
        generator, half = generator_of(self.seed, t, 0, way), window // 2 or 1
        while True:
            yield int(torch.randint(half // 2 + 1, half + 1, (), generator=generator))

    def window(self, t: int, rows: Int[Tensor, "h 1"], columns: Int[Tensor, " w"]) -> Logits:
        """The Gumbel noise (1, h·w, K) of a window at scale t."""
        (h, w), rows, columns = self.grid, rows.cpu(), columns.cpu()
        noise = torch.empty(h, w, self.K)
        used = {(int(i), int(j)) for i in (rows // h).unique() for j in (columns // w).unique()}
        self.blocks = {key: block for key, block in self.blocks.items() if key[1:] in used}
        for i, j in used:
            inside = torch.nonzero((rows // h == i) & (columns // w == j)[None], as_tuple=True)
            block = self.block(t, i, j)
            noise[inside] = block[rows[inside[0], 0] % h, columns[inside[1]] % w]
        return rearrange(noise, "h w K -> 1 (h w) K")

    def block(self, t: int, i: int, j: int) -> Float[Tensor, "h w K"]:
        h, w = self.grid
        if (t, i, j) not in self.blocks:
            noise = gumbel([self.block_seed(i, j)], t, h * w, self.K)
            self.blocks[t, i, j] = noise.reshape(h, w, self.K)
        return self.blocks[t, i, j]

    def block_seed(self, i: int, j: int) -> int:
        """A seed for every block: the image's own for the first."""
        if (i, j) == (0, 0):
            return self.seed
        generator = generator_of(self.seed, i, j, "block")
        return int(torch.randint(2**63 - 1, (), generator=generator))


# ── conditions along x ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ConditionsAlongX:
    """Prompts and classes from left to right, evenly spaced over `width` tokens."""

    encoded: list[EncodedCondition]
    width: int
    wrap: bool

    def weights(self, columns: Int[Tensor, " w"]) -> Float[Tensor, "k w"]:
        """The weight ω_k of each condition at these columns: linear interpolation, Σ_k ω_k = 1."""
        count = len(self.encoded)
        place = (columns + 0.5) / self.width * count - 0.5  # ω_k = 1 at place k
        if not self.wrap:
            place = place.clamp(0, count - 1)
        away = (place - torch.arange(count, device=columns.device)[:, None]).abs()
        if self.wrap:
            away = torch.minimum(away, count - away)
        return (1 - away).clamp(min=0) if count > 1 else torch.ones_like(away)

    def at(
        self, denoiser: Denoiser, choose: Filter, columns: Int[Tensor, " w"]
    ) -> tuple[Decodable, Filter, Condition | None]:
        """(scale that decodes a window of these columns, the filter of its logits, its
        condition)."""
        counted = self.counted(columns)
        if len(counted) == 1:
            ((alone, _),) = counted
            return *alone.steered(denoiser, choose), alone.condition
        weights = torch.stack([weight for _, weight in counted])
        places = weights.repeat(1, denoiser.config.grid[0])
        blended = Blended([one for one, _ in counted], denoiser, choose, places)
        return blended, filters(denoiser, choose)[1], None

    def counted(
        self, columns: Int[Tensor, " w"]
    ) -> list[tuple[EncodedCondition, Float[Tensor, " w"]]]:
        """The conditions that count at these columns, and their weights; equal ones are one."""
        found: list[tuple[EncodedCondition, Tensor]] = []
        for one, weight in zip(self.encoded, self.weights(columns), strict=True):
            if not weight.any():
                continue
            for k, (other, before) in enumerate(found):
                if one.same_as(other):
                    found[k] = other, before + weight
                    break
            else:
                found.append((one, weight))
        return found


class Blended(Decodable):
    """A scale under several conditions: Σ_k ω_k log p_k at every position."""

    def __init__(
        self,
        encoded: list[EncodedCondition],
        denoiser: Denoiser,
        choose: Filter,
        weights: Float[Tensor, "k n"],
    ):
        self.parts: list[tuple[Decodable, Condition | None]] = [
            (one.steered(denoiser, choose)[0], one.condition) for one in encoded
        ]
        self.weights, self.n, self.K, self.t = weights, denoiser.n, denoiser.K, denoiser.t

    def start(self, x_t: Tokens, condition: Condition | None = None) -> list:
        """As `Decodable.start`, for every condition."""
        return [scale.start(x_t, condition) for scale, condition in self.parts]

    def step(self, x_prev: Tokens, at: Int[Tensor, "b s"], state: list) -> Float[Tensor, "b s K"]:
        """As `Decodable.step`: Σ_k ω_k log softmax(z_k)."""
        logits = [
            weight[at][..., None] * scale.step(x_prev, at, one).log_softmax(-1)
            for (scale, _), weight, one in zip(self.parts, self.weights, state, strict=True)
        ]
        return torch.stack(logits).sum(0)

    def read(self, x_prev: Tokens, end: int, state: list) -> None:
        """As `Decodable.read`."""
        for (scale, _), one in zip(self.parts, state, strict=True):
            scale.read(x_prev, end, one)

    def keep(self, rows: Bool[Tensor, " b"], state: list) -> None:
        """As `Decodable.keep`."""
        for (scale, _), one in zip(self.parts, state, strict=True):
            scale.keep(rows, one)


def encode_along_x(
    model: ImageBART, columns: int, seed: int, prompts: Texts, classes: Classes, **options
) -> list[EncodedCondition]:
    """One per prompt or class, with the options of `encode_condition`, and by this seed the class
    of what nothing is said of; ValueError if there are more than columns, or if two lists differ in
    length, and for a model that needs a map."""
    if "map" in model.conditions and not model.condition_dropout:
        raise ValueError(
            "a panorama takes no map, and this model was trained to be given one always"
        )
    given = {"prompt": to_builtin(prompts, str), "classes": to_builtin(classes, str)}
    lists = {name: list(v) if is_several(v) else [v] for name, v in given.items()}
    counts = {len(values) for values in lists.values()} - {1}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"prompts and classes must be one, or as many of each, got {given}")
    count = counts.pop() if counts else 1
    if count > columns:
        raise ValueError(f"prompts and classes must be at most {columns}, got {count}")
    rows = [{name: v[k % len(v)] for name, v in lists.items()} for k in range(count)]
    how: dict[str, Any] = {"seeds": [seed], "called": {"prompt": "prompts"}, **options}
    return [encode_condition(model, 1, **how, **row) for row in rows]


# ── from wide tokens to an image ──────────────────────────────────────────────────────────────


@isolated
def decode_wide(model: ImageBART, tokens: Grid, wrap: bool = False) -> Images:
    """G(x_1) of wide tokens (1, h, w): an image in [-1, 1], decoded in cross-faded windows.

    The decoder's group norms depend on the whole input, so each window has the training size.
    Memory beyond the image itself does not grow with the width.
    """
    (h, w), (H, W), f = model.grid, tokens.shape[1:], model.vqgan.f
    if model.grid == (H, W):
        return model.generate(tokens)
    total, weights = torch.zeros(1, 3, H * f, W * f), torch.zeros(1, 1, H * f, W * f)
    fade = triangular_window(h * f)[:, None] * triangular_window(w * f)
    for top in origins(H, h, False):
        for left in range(0, W, w // 2 or 1) if wrap else origins(W, w, False):
            columns = torch.arange(left, left + w) % W
            window = model.generate(tokens[:, top : top + h, columns.to(tokens.device)])
            rows = torch.arange(top * f, (top + h) * f)[:, None]
            at = rows, torch.arange(left * f, (left + w) * f) % (W * f)
            total[:, :, *at] += fade * window.cpu()
            weights[:, :, *at] += fade
    return (total / weights).to(model.device)


def triangular_window(size: int) -> Float[Tensor, " size"]:
    """Weights that rise linearly to the middle and fall; windows half a size apart sum to 1."""
    up = (torch.arange(size) + 0.5) / (size / 2)
    return torch.minimum(up, 2 - up)
