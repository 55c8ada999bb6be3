"""Edit: the masked process, known tokens held while the rest is drawn.   [section 4.3, A.3]

Every token that must stay is the image's own, clean, at every scale; every other starts as noise
and goes down the chain. No model is trained for it.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from einops import repeat
from PIL import Image
from torch import Tensor

from imagebart.data import fit_box, to_rgb
from imagebart.notation import Bool, Grid, Images
from imagebart.sampling import (
    Step,
    decoder,
    gumbel,
    image_seeds,
    scale_filters,
    step_of,
    uniform_tokens,
)


@torch.inference_mode()
def inpaint(
    model, image: Image.Image, mask: Image.Image | np.ndarray, num_images: int = 1, **options
) -> Images:
    """Images in [-1, 1] that are `image` where the mask is False / black, repainted where True.

    The mask is as large as the image. Image and mask are resized and cropped to the model's size;
    a token is repainted if any pixel of it is marked, and pixels of all other tokens are the
    (resized) input's, exactly. Raises ValueError if the sizes differ.
    """
    image = to_rgb(image)  # upright: the mask is drawn on what is seen
    marked = hole_pixels(mask, image.size)
    x_0 = model.pixels(image)
    hole = token_hole(model, marked)
    pixels = pixel_hole(model, hole).to(x_0.device)
    if not hole.any():
        return repeat(x_0, "1 c h w -> b c h w", b=num_images)
    *_, last = edit_steps(model, model.encode(image), hole, num_images, **options)
    parts = last.tokens.split(1 if model.device.type == "cpu" else 32)
    painted = torch.cat([model.vqgan.decode(part).float() for part in parts])
    return torch.where(pixels, painted, x_0)


@torch.inference_mode()
def edit_steps(
    model,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    *,
    seed=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    classes=None,
    method: str = "parallel",
) -> Iterator[Step]:
    """p_θ^{t-1|t,m} for t = T .. 2: the chain run down once with the known tokens held.

    x_1 (1, h, w) are the image's tokens, `hole` (1, h, w) is True where they may change.
    """
    seeds = image_seeds(seed, num_images)
    filters = scale_filters(model.T, temperature, top_k, top_p)
    decode = decoder(method)
    condition = model.class_ids(classes, num_images)
    x_known = repeat(x_1, "1 h w -> b (h w)", b=num_images)
    known = ~repeat(hole, "1 h w -> b (h w)", b=num_images).to(x_1.device)
    noise_tokens = uniform_tokens(seeds, model.T, known.shape[1], model.K).to(x_1.device)
    x_t = torch.where(known, x_known, noise_tokens)
    yield step_of(model, model.T, x_t)
    for t in range(model.T, 1, -1):
        denoiser = model.denoisers[t]
        noise = gumbel(seeds, t, denoiser.n, model.K).to(x_1.device)
        x_t = decode(denoiser, x_t, noise, filters[t], condition, known, x_known)
        yield step_of(model, t - 1, x_t)


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


