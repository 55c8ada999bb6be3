"""Sample: run the reverse chain.   [section 3.3]

Noise is drawn first and then used. An image has a fixed array of Gumbel noise for every
(seed, t, pass), and its token i is

    x_{t-1}^i = argmax_k( filtered logits_k / temperature + noise_{i,k} )

which is a draw from the softmax. So a seed means the same image alone or in any batch, cached or
not, and decoding becomes the fixed point x = F(x) of one parallel pass: `parallel` finds it in few
passes, `sequential` in n, and both give the same tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from einops import rearrange
from torch import Tensor

from imagebart.arguments import as_int, is_several, to_builtin
from imagebart.choice import FILTERS, Filter, draw
from imagebart.conditions import Condition
from imagebart.decodable import Decodable
from imagebart.denoiser import Denoiser
from imagebart.diffusion import MultinomialDiffusion
from imagebart.guidance import EncodedCondition, encode_condition, per_scale
from imagebart.isolation import isolated
from imagebart.model import ImageBART
from imagebart.notation import Float, Grid, Int, Logits, Mask, Tokens
from imagebart.options import SamplingOptions, with_defaults, with_options

WINDOW = {"cpu": 16, "cuda": 64}
"""Positions that a parallel pass reads: more than it will settle, for what is drawn again is the
better guess. A CPU pays for each of them, a GPU for the pass (eval/passes.py)."""

Noise = Float[Tensor, "b upto K"]

Decode = Callable[..., Tokens]
"""A way of decoding a scale: `decode_parallel`, `decode_sequential`, or a function with their
arguments, such as `partial(decode_parallel, window=32)`."""

OnPass = Callable[[int, Int[Tensor, "b s"]], None]
"""Called before every pass with t and the positions (b, s) that it reads in the rows not done."""


@dataclass(frozen=True)
class Step:
    """One stop of the chain: `tokens` are x_t, (b, h, w); `done` is the part of the way, 0 to 1;
    `effective` the effective sample size of particles, where an edit draws them."""

    t: int
    tokens: Grid
    done: float
    effective: Float[Tensor, "b"] | None = None


# ── the chain ─────────────────────────────────────────────────────────────────────────────────


@with_options
@isolated
def sample_steps(
    model: ImageBART, num_images: int = 1, **options: Unpack[SamplingOptions]
) -> Iterator[Step]:
    """x_T ~ uniform, then x_{t-1} ~ p_θ^{t-1}(· | x_t) for t = T .. 2, yielding each.

    ValueError at the first step if an option is out of range, or is nothing for this model.
    """
    request = Request.of(model, num_images, options, draw_classes=True)
    x_t = uniform_tokens(request.seeds, model.T, model.denoisers[2].n, model.K).to(model.device)
    yield step_of(model, model.T, x_t)
    yield from reverse_steps(model, request, x_t, model.T)


@isolated
def reverse_steps(model: ImageBART, request: "Request", x_t: Tokens, start: int) -> Iterator[Step]:
    """x_{t-1} ~ p_θ^{t-1}(· | x_t) for t = start .. 2, given the tokens x_start, yielding each."""
    draft = Draft(model.diffusion)
    for t in range(start, 1, -1):
        denoiser = model.denoisers[t]
        noise = gumbel(request.seeds, t, denoiser.n, model.K).to(model.device)
        scale, choose = request.scale(denoiser)
        x_t = request.decode(scale, x_t, noise, choose, request.encoded.condition, draft=draft)
        yield step_of(model, t - 1, x_t)


@dataclass(frozen=True)
class Request:
    """The options of a chain, read: the seeds of its images, each scale's filter, the way of
    decoding, the condition. ValueError if one is out of range, or is nothing for this model."""

    seeds: list[int]
    filters: dict[int, Filter]
    decode: Callable[..., Tokens]
    encoded: EncodedCondition

    @classmethod
    def of(
        cls,
        model: ImageBART,
        num_images: int,
        options: Mapping[str, object],
        draw_classes: bool = False,
    ) -> "Request":
        """With `draw_classes`, as `encode_condition` with the seeds."""
        given = with_defaults(SamplingOptions, options)
        seeds = image_seeds(given.pop("seed"), num_images)
        filters, decode = filters_and_decoder(model.T, given)
        given["seeds"] = seeds if draw_classes else None
        return cls(seeds, filters, decode, encode_condition(model, num_images, **given))

    def scale(self, denoiser: Denoiser) -> tuple[Decodable, Filter]:
        """The denoiser under this request's guidance and filter, and the filter of its logits."""
        return self.encoded.steered(denoiser, self.filters[denoiser.t])


def step_of(model: ImageBART, t: int, x_t: Tokens) -> Step:
    grid = rearrange(x_t, "b (h w) -> b h w", h=model.grid[0])
    return Step(t, grid, (model.T - t) / (model.T - 1))


# ── one scale ─────────────────────────────────────────────────────────────────────────────────


def decode_sequential(
    denoiser: Decodable,
    x_t: Tokens,
    noise: Noise,
    choose: Filter,
    condition: Condition | None = None,
    known: Mask | None = None,
    x_known: Tokens | None = None,
    *,
    draft: "Draft | None" = None,
    on_pass: OnPass | None = None,
) -> Tokens:
    """x_{t-1}, one position after another: n passes. Known positions keep their tokens.

    Known tokens before the first masked one are read at once; after the last nothing is computed.
    A draft is not needed here.
    """
    state = denoiser.start(x_t, condition)
    x_prev = x_t.clone() if x_known is None else x_known.clone()
    first, end = span(x_t, known)
    denoiser.read(x_prev, int(first.min()), state)
    for i in range(int(first.min()), int(end.max())):
        at = torch.full((len(x_t), 1), i, device=x_t.device)
        if on_pass is not None:
            on_pass(denoiser.t, at)
        drawn = draw(denoiser.step(x_prev, at, state), noise[:, i : i + 1], choose)[:, 0]
        x_prev[:, i] = drawn if known is None else torch.where(known[:, i], x_prev[:, i], drawn)
    return x_prev


def decode_parallel(
    denoiser: Decodable,
    x_t: Tokens,
    noise: Noise,
    choose: Filter,
    condition: Condition | None = None,
    known: Mask | None = None,
    x_known: Tokens | None = None,
    *,
    draft: "Draft | None" = None,
    window: int | None = None,
    on_pass: OnPass | None = None,
) -> Tokens:
    """The same tokens in fewer passes.

    Start from a guess (the draft of the coarser scales, or x_t; known tokens in place). Each pass
    draws a window of positions at once from the guess before them; the leading positions whose
    guess was drawn again are right, and so is the first that was not, since all before it was
    right. Every row moves on by its own count until it is done, and the new draws are the next
    guess. A known position always agrees. Noise is needed up to the last masked one only.

    `window` is the number of positions a pass reads, by default `WINDOW` of the device.
    """
    state = denoiser.start(x_t, condition)
    first, end = span(x_t, known)
    drawn_here = slice(int(first.min()), int(end.max()))
    x_prev = x_t.clone()
    if draft is not None:
        about = x_t[:, drawn_here], denoiser.t
        x_prev[:, drawn_here] = draft.propose(*about, noise[:, drawn_here], choose)
    if known is not None:
        x_prev = torch.where(known, x_t if x_known is None else x_known, x_prev)
    denoiser.read(x_prev, int(first.min()), state)
    first = first.min().expand(len(x_t)).clone()
    waiting = torch.arange(len(x_t), device=x_t.device)  # rows that are not done
    logits = torch.zeros_like(noise) if draft is not None else None
    width = default_window(x_t.device) if window is None else as_int(window, "window", 1)
    most = max(1, drawn_here.stop - drawn_here.start)
    offset = torch.arange(min(width, most), device=x_t.device)
    while True:
        left = first[waiting] < end[waiting]
        if not left.all():
            waiting = waiting[left]
            if not len(waiting):
                break
            denoiser.keep(left, state)
        at = (first[waiting, None] + offset).clamp(max=drawn_here.stop - 1)
        if on_pass is not None:
            on_pass(denoiser.t, at)
        here = waiting[:, None], at
        z = denoiser.step(x_prev[waiting], at, state)
        if logits is not None:
            logits[here] = z
        drawn, guess = draw(z, noise[here], choose), x_prev[here]
        if known is not None:
            drawn = torch.where(known[here], guess, drawn)
        agreed = (drawn == guess).cumprod(1).sum(1)
        x_prev[here] = drawn
        first[waiting] += (agreed + 1).clamp(max=len(offset))
    if draft is not None and logits is not None:
        draft.update(logits[:, drawn_here], *about)
    return x_prev


class Draft:
    """The chain's prediction of x_1, and each scale's first guess drafted from it, at no pass.

    As in speculative decoding, a cheap model proposes tokens that the network then verifies. Here
    it is the scale before: its logits of x_{t-1} hold a prediction p of x_1 behind two things that
    are known exactly, the noise that x_{t-1} still carries and the likelihood of x_t:

        softmax(z) ∝ ( ᾱ_{t-1} p + (1-ᾱ_{t-1}) / K ) · q(x_t | x_{t-1})

    `x_1_prediction` solves this for p, and `propose` evaluates it one scale finer, where the noise
    that will choose the token chooses the guess. Before the first scale p is uniform, so the guess
    is what the noise alone would choose.
    """

    def __init__(self, diffusion: MultinomialDiffusion):
        self.diffusion = diffusion
        self.last: tuple[Logits, Tokens, int] | None = None

    def propose(self, x_t: Tokens, t: int, noise: Noise, choose: Filter) -> Tokens:
        """x_{t-1} (b, n) as predicted by the coarser scales."""
        alpha_bar, K = float(self.diffusion.alpha_bar[t - 1]), self.diffusion.K
        prior = (alpha_bar * self.x_1_prediction().to(x_t.device) + (1 - alpha_bar) / K).log()
        return draw(prior + self.diffusion.log_likelihood(x_t, t), noise, choose)

    def update(self, z: Logits, x_t: Tokens, t: int) -> None:
        """Keep the logits z of x_{t-1}; their prediction of x_1 is computed when it is needed."""
        self.last = z, x_t, t

    def x_1_prediction(self) -> Float[Tensor, "b n K"]:
        """p, solved from the last logits."""
        if self.last is None:
            return torch.full((1, 1, 1), 1 / self.diffusion.K)
        z, x_t, t = self.last
        alpha_bar, K = float(self.diffusion.alpha_bar[t - 1]), self.diffusion.K
        noisy = (z - self.diffusion.log_likelihood(x_t, t)).softmax(-1)
        return (noisy - (1 - alpha_bar) / K).clamp(min=0) / alpha_bar


def span(x_t: Tokens, known: Mask | None) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Each row's first position to be drawn, and the end of its last; 0, 0 if there is none."""
    if known is None:
        known = torch.zeros_like(x_t, dtype=torch.bool)
    place = torch.arange(1, x_t.shape[1] + 1, device=x_t.device)
    return (~known).int().argmax(1), (~known * place).amax(1)


def default_window(device: torch.device) -> int:
    """The number of positions that suits the hardware."""
    return WINDOW.get(device.type, WINDOW["cuda"])


METHODS = {"parallel": decode_parallel, "sequential": decode_sequential}


def decoder(method: str | Decode) -> Decode:
    """The way of decoding called `method`, or `method` itself where it is one."""
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    return METHODS[method]


# ── noise, drawn first ────────────────────────────────────────────────────────────────────────


def gumbel(seeds: Sequence[int], t: int, n: int, K: int, pass_index: int = 0) -> Noise:
    """Gumbel noise (b, n, K) of each image's seed at scale t, one pass: -log(-log(1 - u)).

    u is uniform, of 53 random bits: of fewer, many of the largest noises would be equal. The first
    positions have the same noise, however many are asked for.
    """
    u = torch.empty(len(seeds), n, K)
    for row, seed in zip(u, seeds, strict=True):
        generator = generator_of(seed, t, pass_index, "gumbel")
        row.copy_(torch.rand(n, K, dtype=torch.float64, generator=generator))
    return -exponential(u.clamp_(1e-30, 1 - 2**-24)).log_()


def exponential(u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """-log(1 - u), exact for small u as well (Kahan's formula): `log1p` takes twice as long."""
    rest = 1 - u
    return torch.where(rest < 1, rest.log().mul_(u).div_(rest - 1), u)


def uniform_tokens(seeds: Sequence[int], t: int, n: int, K: int) -> Tokens:
    """x_T: tokens (b, n) that know nothing."""
    rows = [torch.randint(K, (n,), generator=generator_of(seed, t, 0, "tokens")) for seed in seeds]
    return torch.stack(rows)


def generator_of(seed: int, t: int, pass_index: int, use: str) -> torch.Generator:
    """A generator of its own for every (seed, scale, pass, use)."""
    digest = hashlib.sha256(f"{seed} {t} {pass_index} {use}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


# ── the caller's options ──────────────────────────────────────────────────────────────────────


def image_seeds(seed: int | Sequence[int], num_images: int) -> list[int]:
    """One seed an image: seed, seed + 1, … or those given."""
    num_images, seed = as_int(num_images, "num_images", 1), to_builtin(seed, str)
    if not is_several(seed):
        first = as_int(seed, "seed", 0, 2**63 - num_images)
        return [first + i for i in range(num_images)]
    seeds = [as_int(one, "every seed", 0, 2**63 - 1) for one in seed]
    if len(seeds) != num_images:
        raise ValueError(f"seed must be one number or {num_images} of them, got {len(seeds)}")
    return seeds


def filters_and_decoder(T: int, given: dict[str, Any]) -> tuple[dict[int, Filter], Decode]:
    """(each scale's filter, the way of decoding) from the options, which lose them; ValueError if
    one is out of range."""
    filters = scale_filters(T, **{name: given.pop(name) for name in FILTERS})
    return filters, decoder(given.pop("method"))


def scale_filters(T: int, **given) -> dict[int, Filter]:
    """{t: Filter} from the options of a filter: numbers, or one number a scale, t = 2 .. T."""
    columns = {name: per_scale(value, T, name) for name, value in given.items()}
    return {
        t: Filter(**{name: column[t - 2] for name, column in columns.items()})
        for t in range(2, T + 1)
    }
