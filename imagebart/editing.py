"""Edit: the masked process, known tokens held while the rest is drawn.   [section 4.3, A.3]

Every token that must stay is the image's own, clean, at every scale; every other starts as noise
and goes down the chain. No model is trained for it. Three ways down:

    single      every scale once; where only the known part tells what to draw, t = T - 1, which
                sees it, in place of t = T
    refined     so, then forth and back on the finest scale until nothing changes
    annealed    every scale several times, noised again in between and less each time: the
                procedure of the released editing script
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from imagebart.data import fit_box, to_pil, to_rgb, to_tensor
from imagebart.denoiser import ABSENT
from imagebart.diffusion import geometric
from imagebart.guidance import ask, per_scale
from imagebart.notation import Bool, Grid, Images, Tokens
from imagebart.pasting import Box, box_around, feathered, filled, outward
from imagebart.sampling import (
    Belief,
    Step,
    decoder,
    generator_of,
    gumbel,
    holes,
    image_seeds,
    scale_filters,
    step_of,
    uniform_tokens,
)
from imagebart.whole import whole


@torch.inference_mode()
def inpaint(
    model,
    image: Image.Image,
    mask: Image.Image | np.ndarray,
    num_images: int = 1,
    *,
    process: str = "single",
    context: int = 0,
    feather: int = 0,
    box: Box | None = None,
    **options,
) -> Images:
    """Images in [-1, 1] that are `image` where the mask is False / black, repainted where True.

    Image and mask have one size, any, and so have the results. The model sees a part of its own
    shape around the mask (`pasting.box_around`, or `box`). A token is repainted if any pixel of it
    is marked, and pixels of all other tokens are the input's, exactly. An empty mask gives the
    input back.

    `process` is "single" (`edit_steps`), "refined" (`refined_steps`) or "annealed"
    (`annealed_steps`, as released), whose options it takes. `context` widens the hole by so many
    tokens, `feather` smooths its seam over so many pixels of the model. ValueError if the sizes
    differ.
    """
    image_seeds(options.get("seed", 0), num_images)
    if process not in PROCESSES:
        raise ValueError(f"process must be one of {tuple(PROCESSES)}, got {process!r}")
    edit = Edit(model, image, mask, context=context, feather=feather, box=box)
    if not edit.hole.any():
        return repeat(edit.x, "1 c h w -> b c h w", b=num_images)
    *_, last = PROCESSES[process](model, edit.x_1(), edit.hole, num_images, **options)
    return edit.result(last.tokens)


class Edit:
    """A picture, the part of it that the model sees, and the tokens of it that may change.

    x         the picture (1, 3, H, W), in [-1, 1]
    x_0       what the model sees of it, at the model's size
    hole      the tokens (1, h, w) that may change; their pixels are `inside`
    """

    def __init__(
        self,
        model,
        image: Image.Image,
        mask: Image.Image | np.ndarray,
        *,
        context: int = 0,
        feather: int = 0,
        box: Box | None = None,
    ):
        whole(context, "context")
        whole(feather, "feather")
        image = to_rgb(image)
        marked = hole_pixels(mask, image.size)
        everything = marked if marked.any() else ~marked
        self.model, self.feather = model, feather
        self.box = box_around(everything, model.image_size) if box is None else box
        self.x = to_tensor(image)[None].to(model.device)
        self.x_0 = model.pixels(self.box.cut(image, model.image_size))
        self.hole = widened(self.box.tokens(marked, model.grid), context)
        self.inside = self.box.pixels(self.hole, image.size[::-1])

    def x_1(self) -> Grid:
        """The tokens (1, h, w) of what the model sees."""
        return self.model.vqgan.encode(self.x_0)

    def result(self, tokens: Grid) -> Images:
        """The picture, repainted with each of the tokens (b, h, w)."""
        painted = self.model.generate(tokens)
        if self.feather:
            inside = pixel_hole(self.model, self.hole).to(painted.device)
            painted = feathered(painted, self.x_0, inside, self.feather)
        return self.box.paste(self.x, painted, self.inside)


def widened(hole: Bool[Tensor, "1 h w"], context: int) -> Bool[Tensor, "1 h w"]:
    """The hole and all tokens within `context` of it."""
    size = 2 * context + 1
    return F.max_pool2d(hole.float(), size, stride=1, padding=context) > 0


# ── completions ───────────────────────────────────────────────────────────────────────────────

HALVES = ("upper", "lower", "left", "right")
MOST_SIDE = 16_384
"""Pixels a side that outpainting may reach."""
CONDITIONS = ("prompt", "negative_prompt", "classes", "semantic_map")
"""Options that may be a list, one for each image."""


def complete(
    model, image: Image.Image, num_images: int = 1, *, keep: str = "lower", **options
) -> Images:
    """Images in [-1, 1] that keep one half of `image`; options as `inpaint`."""
    if keep not in HALVES:
        raise ValueError(f"keep must be one of {HALVES}, got {keep!r}")
    image = to_rgb(image)  # upright, as its hole
    hole = np.zeros((image.height, image.width), bool)
    turned = hole.T if keep in ("left", "right") else hole
    half = len(turned) // 2
    turned[half:] = keep in ("upper", "left")
    turned[:half] = keep in ("lower", "right")
    return inpaint(model, image, hole, num_images, **options)


def outpaint(
    model,
    image: Image.Image,
    num_images: int = 1,
    *,
    seed: int | Sequence[int] = 0,
    **options,
) -> Images:
    """Images in [-1, 1], larger than `image`; options as `outpaint_steps`."""
    grown, seeds = [], image_seeds(seed, num_images)
    for one, own in zip(seeds, each_image(options, num_images), strict=True):
        *_, (last, _) = outpaint_steps(model, image, seed=one, **own)
        grown.append(to_tensor(last))
    return torch.stack(grown).to(model.device)


def each_image(options: dict, num_images: int) -> list[dict]:
    """The options of each image alone, where prompts, classes or maps are a list of one each."""
    lists = {name: options[name] for name in CONDITIONS if isinstance(options.get(name), list)}
    for name, values in lists.items():
        if len(values) != num_images:
            raise ValueError(f"{name} must be one, or {num_images} of them, got {len(values)}")
    return [
        options | {name: values[i] for name, values in lists.items()} for i in range(num_images)
    ]


@torch.inference_mode()
def outpaint_steps(
    model,
    image: Image.Image,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    seed: int = 0,
    **options,
) -> Iterator[tuple[Image.Image, float]]:
    """A picture that grows by these pixels on each side: (the picture so far, the part done).

    The model sees windows as large as fit into the image. They go outwards by half their size, each
    with at least half of it known; all that is known stays, bit for bit. Until a pixel's window has
    come it repeats the nearest that is known. Options as `inpaint`.
    """
    image, margins = to_rgb(image), {"left": left, "right": right, "top": top, "bottom": bottom}
    size = grown_size(model, image, margins)
    place = slice(top, top + image.height), slice(left, left + image.width)
    canvas, known = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    canvas[place], known[place] = np.asarray(image), True
    boxes = list(outward(known, model.image_size))
    for turn, box in enumerate(boxes):
        continued = Image.fromarray(filled(canvas, known))
        yield continued, turn / len(boxes)
        one = window_seed(seed, turn)
        window = inpaint(model, continued, ~known, box=box, seed=one, **options)
        new = box.inside(size) & ~known
        canvas[new], known = np.asarray(to_pil(window)[0])[new], known | new
    yield Image.fromarray(canvas), 1.0


def grown_size(model, image: Image.Image, margins: dict[str, int]) -> tuple[int, int]:
    """(H, W) with the margins; ValueError if they, or the image, are nothing to go on from."""
    for name, margin in margins.items():
        whole(margin, name)
    if min(image.size) * 8 < min(model.image_size):
        least = -(-min(model.image_size) // 8)
        raise ValueError(f"an image must have at least {least} pixels a side, got {image.size}")
    H = image.height + margins["top"] + margins["bottom"]
    W = image.width + margins["left"] + margins["right"]
    if max(H, W) > MOST_SIDE:
        raise ValueError(f"sides must be at most {MOST_SIDE} with the margins, got {(H, W)}")
    return H, W


def window_seed(seed: int, turn: int) -> int:
    """The seed itself for the first window, one of its own for every other."""
    if turn == 0:
        return seed
    return int(torch.randint(2**63 - 1, (), generator=generator_of(seed, turn, 0, "window")))


AROUND = 4
"""Passes at t = T - 1 that look around a hole of which nothing is said."""


@torch.inference_mode()
def edit_steps(
    model,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    *,
    around: int | None = None,
    **options,
) -> Iterator[Step]:
    """p_θ^{t-1|t,m} for t = T .. 2: the chain run down once with the known tokens held.

    x_1 (1, h, w) are the image's tokens, `hole` (1, h, w) is True where they may change. Options
    as `ImageBART.sample_steps`.

    At t = T nothing is seen but what stands before a token, so a sky would be drawn without a look
    at the land below it, and no later scale changes its mind. Where anything is known, and T > 2,
    the hole can be left as noise there, and t = T - 1, which sees all that is known, has `around`
    passes: remember, then forget to t and remember again. 0 is the paper's chain, all scales once.
    Not given, it is 0 where a prompt, a class or a map says what to draw, which is best heard from
    the beginning, and `AROUND` elsewhere.
    """
    process = MaskedProcess(model, x_1, hole, num_images, **options)
    x = process.start()
    yield step_of(model, model.T, x)
    for t, passes in process.course(around).items():
        for turn in range(passes):
            x = process.again(x, t, turn) if turn else process.remember(x, t, 0)
        yield step_of(model, t - 1, x)


@torch.inference_mode()
def annealed_steps(
    model,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    *,
    chains: int | Sequence[int] | None = None,
    **options,
) -> Iterator[Step]:
    """The released procedure: at every scale, forget a little and remember again, n_t times.

        x_t ← redraw(x_{t-1}, (1 - i / n_t) · β_t),   x_{t-1} ~ p_θ^{t-1|t,m}(· | x_t),   i < n_t

    The first pass (i = 0) takes x_t as it comes; the redraws of later passes fall on known tokens
    too, which the pass puts back. `chains` is n_t: one number, or one for each t = 2 .. T; None is
    as released, see `released_chains`. Temperature and top-k hold at every scale. Arguments and
    steps are those of `edit_steps`.
    """
    process = MaskedProcess(model, x_1, hole, num_images, **options)
    passes = released_chains(model) if chains is None else chain_lengths(model.T, chains)
    x = process.start()
    yield step_of(model, model.T, x)
    for t in range(model.T, 1, -1):
        for turn in range(passes[t]):
            if turn:
                x = process.forget(x, t, turn, 1 - turn / passes[t])
            x = process.remember(x, t, turn)
        yield step_of(model, t - 1, x)


@torch.inference_mode()
def refined_steps(
    model,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    *,
    passes: int = 8,
    around: int | None = None,
    **options,
) -> Iterator[Step]:
    """`edit_steps`, then passes on the finest scale: forget the hole to t = 2, remember it again.

        x_2 ← q(x_2 | x_1) in the hole,   x_1 ~ p_θ^{1|2,m}(· | x_2)

    What was drawn before its surroundings were known gets to see them. Each pass has its own noise.
    An image whose tokens a pass leaves as they are has settled and rests; when all have, or after
    `passes`, it ends. The steps of the passes have t = 1. Other options as `edit_steps`.
    """
    whole(passes, "passes")
    process = MaskedProcess(model, x_1, hole, num_images, **options)
    down, all_passes = model.T - 1, model.T - 1 + passes
    for step in edit_steps(model, x_1, hole, num_images, around=around, **options):
        yield replace(step, done=step.done * down / all_passes)
    x = rearrange(step.tokens, "b h w -> b (h w)")
    settled = torch.zeros(num_images, 1, dtype=torch.bool, device=x.device)
    drawn = process.course(around)[2]  # with the noise of turns 0 .. drawn - 1
    for turn in range(1, passes + 1):
        again = torch.where(settled, x, process.again(x, 2, drawn - 1 + turn))
        settled, x = (again == x).all(1, keepdim=True), again
        done = 1.0 if settled.all() else (down + turn) / all_passes
        yield replace(step_of(model, 1, x), done=done)
        if settled.all():
            return


class MaskedProcess:
    """The chain with known tokens held: p_θ^{t-1|t,m}, and forgetting.   [section 4.3, A.3]"""

    def __init__(
        self,
        model,
        x_1: Grid,
        hole: Bool[Tensor, "1 h w"],
        num_images: int,
        *,
        seed=0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        method: str = "parallel",
        **conditions,
    ):
        self.model, self.decode, self.belief = model, decoder(method), Belief(model.diffusion)
        self.seeds = image_seeds(seed, num_images)
        self.filters = scale_filters(model.T, temperature, top_k, top_p)
        self.asked = ask(model, num_images, **conditions)
        self.x_known = repeat(x_1, "1 h w -> b (h w)", b=num_images)
        self.known = ~repeat(hole, "1 h w -> b (h w)", b=num_images).to(x_1.device)

    def start(self) -> Tokens:
        """x_T: known tokens, and noise in the hole."""
        n = self.known.shape[1]
        noise = uniform_tokens(self.seeds, self.model.T, n, self.model.K)
        return torch.where(self.known, self.x_known, noise.to(self.x_known.device))

    def course(self, around: int | None) -> dict[int, int]:
        """{t: passes} from t = T to 2 of `edit_steps`."""
        if around is None:
            asked = self.asked.condition
            around = AROUND if asked is None or (asked == ABSENT).all() else 0
        T, around = self.model.T, whole(around, "around")
        course = dict.fromkeys(range(T, 1, -1), 1)
        if around and T > 2 and self.known.any():
            course |= {T: 0, T - 1: around}
        return course

    def again(self, x: Tokens, t: int, turn: int) -> Tokens:
        """x_{t-1} once more: the hole forgotten to t, and remembered."""
        x_t = torch.where(self.known, self.x_known, self.forget(x, t, turn))
        return self.remember(x_t, t, turn)

    def remember(self, x_t: Tokens, t: int, turn: int) -> Tokens:
        """x_{t-1} ~ p_θ^{t-1|t,m}(· | x_t), with the noise of pass `turn`."""
        denoiser, upto = self.model.denoisers[t], int(holes(x_t, self.known)[1].max())
        noise = gumbel(self.seeds, t, upto, denoiser.K, turn).to(x_t.device)
        how = self.filters[t], self.asked.condition, self.known, self.x_known
        return self.decode(self.asked.at(denoiser), x_t, noise, *how, self.belief)

    def forget(self, x: Tokens, t: int, turn: int, part: float = 1.0) -> Tokens:
        """x with every token redrawn with the chance part · β_t."""
        chance = part * float(self.model.diffusion.beta[t])
        return redraw(x, chance, self.model.K, self.seeds, t, turn)


PROCESSES = {"single": edit_steps, "annealed": annealed_steps, "refined": refined_steps}


def redraw(x: Tokens, chance: float, K: int, seeds: Sequence[int], t: int, turn: int) -> Tokens:
    """x with every token redrawn from all K with this chance; the noise is each image's own."""
    rows = []
    for row, seed in zip(x, seeds, strict=True):
        generator = generator_of(seed, t, turn, "redraw")
        where = torch.rand(len(row), generator=generator) < chance
        fresh = torch.randint(K, (len(row),), generator=generator)
        rows.append(torch.where(where.to(x.device), fresh.to(x.device), row))
    return torch.stack(rows)


def released_chains(model) -> dict[int, int]:
    """{t: passes} as released: 3 on a geometric schedule, 5 on others, and one at t = T.

    The released script repeats T too on a geometric schedule, but nothing is read there: each
    repeat is another independent draw, and only the last is kept.
    """
    exact = torch.tensor(geometric(model.T), dtype=torch.float64)
    several = 3 if torch.allclose(model.diffusion.alpha_bar[1:], exact, atol=1e-6) else 5
    return {t: several if t < model.T else 1 for t in range(2, model.T + 1)}


def chain_lengths(T: int, chains: int | Sequence[int]) -> dict[int, int]:
    """{t: passes} from one number, or one for each scale t = 2 .. T."""
    lengths = per_scale(chains, T, "chains")
    return {t: whole(n, "chains", 1) for t, n in zip(range(2, T + 1), lengths, strict=True)}


def hole_pixels(mask: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask as H×W booleans; ValueError unless it is as large as the image, `size` = (W, H)."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) >= 128
    mask = np.asarray(mask)
    if mask.ndim == 3:
        mask = mask.any(axis=2)
    if mask.shape != size[::-1]:
        got = "×".join(map(str, mask.shape[::-1])) or "none"
        raise ValueError(f"the mask must be as large as the image, {size[0]}×{size[1]}, got {got}")
    return mask.astype(bool)


def token_hole(model, marked: np.ndarray) -> Bool[Tensor, "1 h w"]:
    """True at every token that a marked pixel touches, however thin the stroke.

    Pixels are followed through `fit`'s resize and crop, so an image of any size will do.
    """
    h, w = model.grid
    left, top, right, bottom = fit_box(marked.shape[::-1], model.image_size)
    rows = [_touched(top, bottom, i, h) for i in range(h)]
    columns = [_touched(left, right, j, w) for j in range(w)]
    return torch.tensor([[[bool(marked[r, c].any()) for c in columns] for r in rows]])


def _touched(start: float, stop: float, i: int, count: int) -> slice:
    """The pixels that the i-th of `count` equal parts of [start, stop] touches."""
    step = (stop - start) / count
    return slice(math.floor(start + i * step + 1e-6), math.ceil(start + (i + 1) * step - 1e-6))


def pixel_hole(model, hole: Bool[Tensor, "1 h w"]) -> Bool[Tensor, "1 1 H W"]:
    """The pixels of the tokens in the hole."""
    f = model.vqgan.f
    return repeat(hole, "1 h w -> 1 1 (h fh) (w fw)", fh=f, fw=f)
