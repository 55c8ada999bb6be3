"""Counterfactual edits: the same picture, had its words been others.   [section 3.3]

A token of the chain is a function of its conditions and of noise that is drawn first:

    x_{t-1}^i = argmax_k( log p_k + g_k ),     p = p_θ(· | x_{t-1}^{<i}, x_t, words),  g ~ Gumbel

So of a picture one can ask what it would have been under other words: a counterfactual of a
structural causal model (Oberst and Sontag 2019, "Counterfactual off-policy evaluation with
Gumbel-max structural causal models"), in its three steps:

    abduction     x_2 .. x_T by the forward process; then at every scale the noise g is drawn given
                  that it chose the token that is there (`posterior_gumbel`)
    action        the words are exchanged
    prediction    the chain runs again with the same noise

With the words of the picture this gives its tokens. With others a token changes where they make it
less likely than the words of the picture did: nobody marks where.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from einops import repeat
from PIL import Image
from torch import Tensor

from imagebart.choice import COLDEST, Filter
from imagebart.conditions import Condition
from imagebart.data.images import to_rgb
from imagebart.decodable import Decodable
from imagebart.diffusion import MultinomialDiffusion
from imagebart.guidance import EncodedCondition, encode_condition, guidance_by_scale
from imagebart.isolation import isolated
from imagebart.model import ImageBART, require_x_1
from imagebart.notation import Grid, Images, Logits, Tokens
from imagebart.options import Conditions, ReimaginingOptions, rows, with_options
from imagebart.sampling import (
    Draft,
    Noise,
    Request,
    Step,
    generator_of,
    gumbel,
    step_of,
)
from imagebart.streaming import batches

SOURCE = {name: f"source_{name}" for name in rows(Conditions)}
"""{option of a condition: the option for that of the picture}."""

ROUNDING = 1e-5
"""By this part of the largest logit, and at least this, the chosen code wins: more than float32
rounds."""


@with_options
@isolated
def reimagine(
    model: ImageBART,
    image: Image.Image,
    num_images: int = 1,
    **options: Unpack[ReimaginingOptions],
) -> Images:
    """Images (b, 3, H, W) in about [-1, 1] of the model's size: `image` under other words.

    The model sees the largest centred part of its own shape. The results differ by their seeds,
    that is by x_2 .. x_T and by the noise. Errors as in `reimagine_steps`.
    """
    return torch.cat([*reimagined(model, image, num_images, options)])


@isolated
def reimagined(
    model: ImageBART, image: Image.Image, num_images: int, options: ReimaginingOptions
) -> Iterator[Images]:
    """The images of `reimagine`, a batch that fits the memory at a time."""
    given: dict[str, Any] = {**options}
    source = {name: given.pop(option, None) for name, option in SOURCE.items()}
    guidance = {"guidance": given.pop("guidance", None)}
    x_1 = model.encode(to_rgb(image))
    unguided = {"guidance": 1.0}  # of two conditions: no dropout is needed
    of_source = batches(model, num_images, source | unguided, called=SOURCE)
    both = batches(model, num_images, given | unguided), of_source
    for (count, own), (_, own_source) in zip(*both, strict=True):
        del own["negative_prompt"]  # it is guided away from the picture's words
        own |= guidance | {option: own_source[name] for name, option in SOURCE.items()}
        last = deque(reimagine_steps(model, x_1, count, **own), 1).pop()
        yield model.generate(last.tokens)


@with_options
@isolated
def reimagine_steps(
    model: ImageBART, x_1: Grid, num_images: int = 1, **options: Unpack[ReimaginingOptions]
) -> Iterator[Step]:
    """x_t of the picture with tokens x_1 (1, h, w), then x_{t-1} .. x_1 under the new words.

    The chain runs from t = 1 + round(strength · (T - 1)): all scales at strength 1, none at 0. It
    is guided from the picture's words (`source_prompt` …, or none) to the new ones,

        z = z_source + guidance · ( z_condition - z_source )

    so if they are the same, the picture's tokens come back, whatever the guidance: on a CPU
    exactly, on a GPU as far as its kernels round alike. The picture is taken to be drawn at the
    temperature, without guidance. Filters (top-k, top-p, min-p) are no options, since they may
    exclude the picture's own tokens. ValueError at the first step for a temperature of 0, which
    reads no noise, for values out of range, and for a condition that the model was not trained on.
    """
    given: dict[str, Any] = {**options}
    strength = given.pop("strength", 1.0)
    rows(ReimaginingOptions)["strength"].check(strength, "strength")
    source = {name: given.pop(option, None) for name, option in SOURCE.items()}
    guidance = given.pop("guidance", None)
    scales = guidance_by_scale(model, guidance)  # of two conditions: no dropout is needed
    of_source: dict[str, Any] = {"guidance": 1.0, "called": SOURCE, **source}
    picture = encode_condition(model, num_images, **of_source).condition
    request = Request.of(model, num_images, given | {"guidance": 1.0})
    if any(choose.temperature < COLDEST for choose in request.filters.values()):
        raise ValueError("temperature must be more than 0, where noise decides, got 0")
    encoded = EncodedCondition(request.encoded.condition, picture, scales)
    as_seen = EncodedCondition(picture, None, scales)
    start = 1 + round(strength * (model.T - 1))
    levels = noised(model, x_1, start, request.seeds)
    x = levels[start]
    yield replace(step_of(model, start, x), done=float(start == 1))
    for t in range(start, 1, -1):
        denoiser, observed = model.denoisers[t], levels[t - 1]
        plain, choose = as_seen.steered(denoiser, request.filters[t])
        scale, _ = encoded.steered(denoiser, request.filters[t])
        logits = logits_of(plain, levels[t], observed, picture)
        prior = gumbel(request.seeds, t, denoiser.n, denoiser.K).to(model.device)
        noise = posterior_gumbel(logits / choose.temperature, observed, prior)
        how = noise, choose, encoded.condition
        guess = Unchanged(model.diffusion, observed)
        x = request.decode(scale, x, *how, draft=guess)
        yield replace(step_of(model, t - 1, x), done=(start - t + 1) / (start - 1))


# ── abduction ─────────────────────────────────────────────────────────────────────────────────


def noised(model: ImageBART, x_1: Grid, most: int, seeds: Sequence[int]) -> dict[int, Tensor]:
    """{t: x_t (b, n)} for t = 1 .. `most`, each by `q_sample_step` with its image's seed."""
    x_1 = require_x_1(model, x_1)
    x = repeat(x_1, "1 h w -> b (h w)", b=len(seeds)).cpu()
    levels = {1: x.to(model.device)}
    for t in range(2, most + 1):
        generators = [generator_of(seed, t, 0, "forward") for seed in seeds]
        each = zip(x.split(1), generators, strict=True)
        x = torch.cat([model.diffusion.q_sample_step(one, t, own) for one, own in each])
        levels[t] = x.to(model.device)
    return levels


def logits_of(scale: Decodable, x_t: Tokens, x_prev: Tokens, condition: Condition | None) -> Logits:
    """The logits that decoding computes for the tokens of x_{t-1}, all in one pass."""
    at = repeat(torch.arange(scale.n, device=x_t.device), "n -> b n", b=len(x_t))
    return scale.step(x_prev, at, scale.start(x_t, condition))


def posterior_gumbel(logits: Logits, x: Tokens, prior: Noise) -> Noise:
    """g ~ p(g | argmax_k(φ_k + g_k) = x), from Gumbel noise `prior` and logits φ.

    Top down (Maddison, Tarlow and Minka 2014, "A* sampling"): the maximum Z does not depend on
    where it lies, and below it every other φ_k + g_k is a Gumbel truncated at Z:

        Z = log Σ_k exp φ_k + g'_x,      φ_k + g_k = -log( exp(-Z) + exp(-(φ_k + g'_k)) )
    """
    Z = logits.logsumexp(-1, keepdim=True) + prior.gather(-1, x[..., None])
    truncated = -torch.logaddexp(-Z, -(logits + prior))
    margin = ROUNDING * (1 + logits.abs().amax(-1, keepdim=True))
    return truncated.minimum(Z - margin).scatter(-1, x[..., None], Z) - logits


class Unchanged(Draft):
    """The first guess of every scale: the picture's own tokens."""

    def __init__(self, diffusion: MultinomialDiffusion, x_prev: Tokens):
        super().__init__(diffusion)
        self.x_prev = x_prev

    def propose(self, x_t: Tokens, t: int, noise: Noise, choose: Filter) -> Tokens:
        """x_{t-1} (b, n) of the picture."""
        return self.x_prev
