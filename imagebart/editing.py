"""Edit: the masked process, known tokens held while the rest is drawn.   [section 4.3, A.3]

Every token that must stay is the image's own, clean, at every scale; every other starts as noise
and goes down the chain. No model is trained for it. Three ways down:

    single      every scale once
    annealed    every scale several times, noised again in between and less each time: the
                procedure of the released editing script
    refined     every scale once, then forth and back on the finest scale until nothing changes
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from imagebart.data import fit_box, to_rgb
from imagebart.diffusion import geometric
from imagebart.guidance import ask, per_scale
from imagebart.notation import Bool, Grid, Images, Tokens
from imagebart.sampling import (
    Step,
    decoder,
    generator_of,
    gumbel,
    image_seeds,
    scale_filters,
    step_of,
    uniform_tokens,
)


@torch.inference_mode()
def inpaint(
    model,
    image: Image.Image,
    mask: Image.Image | np.ndarray,
    num_images: int = 1,
    *,
    process: str = "single",
    **options,
) -> Images:
    """Images in [-1, 1] that are `image` where the mask is False / black, repainted where True.

    The mask is as large as the image. Image and mask are resized and cropped to the model's size;
    a token is repainted if any pixel of it is marked, and pixels of all other tokens are the
    (resized) input's, exactly. `process` is "single" (`edit_steps`), "annealed"
    (`annealed_steps`) or "refined" (`refined_steps`), whose options it takes. Raises ValueError if
    the sizes differ.
    """
    if process not in PROCESSES:
        raise ValueError(f"process must be one of {tuple(PROCESSES)}, got {process!r}")
    image = to_rgb(image)
    marked = hole_pixels(mask, image.size)
    x_0 = model.pixels(image)
    hole = token_hole(model, marked)
    pixels = pixel_hole(model, hole).to(x_0.device)
    if not hole.any():
        return repeat(x_0, "1 c h w -> b c h w", b=num_images)
    *_, last = PROCESSES[process](model, model.encode(image), hole, num_images, **options)
    return torch.where(pixels, model.generate(last.tokens), x_0)


def edit_steps(
    model, x_1: Grid, hole: Bool[Tensor, "1 h w"], num_images: int = 1, **options
) -> Iterator[Step]:
    """p_θ^{t-1|t,m} for t = T .. 2: the chain run down once with the known tokens held.

    x_1 (1, h, w) are the image's tokens, `hole` (1, h, w) is True where they may change. Options
    as `ImageBART.sample_steps`.
    """
    return annealed_steps(model, x_1, hole, num_images, chains=1, **options)


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
    **options,
) -> Iterator[Step]:
    """`edit_steps`, then passes on the finest scale: forget the hole to t = 2, remember it again.

        x_2 ← q(x_2 | x_1) in the hole,   x_1 ~ p_θ^{1|2,m}(· | x_2)

    What was drawn before its surroundings were known gets to see them. Each pass has its own noise.
    An image whose tokens a pass leaves as they are has settled and rests; when all have, or after
    `passes`, it ends. The steps of the passes have t = 1. Other options as `edit_steps`.
    """
    if not isinstance(passes, int) or passes < 0:
        raise ValueError(f"passes must be a whole number, at least 0, got {passes!r}")
    process = MaskedProcess(model, x_1, hole, num_images, **options)
    down, all_passes = model.T - 1, model.T - 1 + passes
    for step in edit_steps(model, x_1, hole, num_images, **options):
        yield replace(step, done=step.done * down / all_passes)
    x = rearrange(step.tokens, "b h w -> b (h w)")
    settled = torch.zeros(num_images, 1, dtype=torch.bool, device=x.device)
    for turn in range(1, passes + 1):
        x_2 = torch.where(process.known, process.x_known, process.forget(x, 2, turn))
        again = torch.where(settled, x, process.remember(x_2, 2, turn))
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
        self.model, self.decode = model, decoder(method)
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

    def remember(self, x_t: Tokens, t: int, turn: int) -> Tokens:
        """x_{t-1} ~ p_θ^{t-1|t,m}(· | x_t), with the noise of pass `turn`."""
        denoiser = self.model.denoisers[t]
        noise = gumbel(self.seeds, t, denoiser.n, denoiser.K, turn).to(x_t.device)
        how = self.filters[t], self.asked.condition, self.known, self.x_known
        return self.decode(self.asked.at(denoiser), x_t, noise, *how)

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
    if not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise ValueError(f"chains must be whole numbers, at least 1, got {chains}")
    return dict(zip(range(2, T + 1), lengths, strict=True))


def hole_pixels(mask: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask as H×W booleans; ValueError unless it is as large as the image, `size` = (W, H)."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) >= 128
    mask = np.asarray(mask)
    if mask.ndim == 3:
        mask = mask.any(axis=2)
    if mask.shape != size[::-1]:
        got = "×".join(map(str, mask.shape[::-1]))
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
