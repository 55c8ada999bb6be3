"""The masked process: known tokens held while the rest is drawn.   [section 4.3, A.3]

Every token that must stay is the image's own, clean, at every scale; every other starts as noise
and goes down the chain. No model is trained for it. Three ways down:

    single      every scale once; where only the known part tells what to draw, t = T - 1, which
                sees it, in place of t = T
    refined     so, then forth and back on the finest scale until nothing changes
    annealed    every scale several times, noised again in between and less each time: the
                procedure of the released editing script
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Unpack

import torch
from einops import rearrange, repeat
from torch import Tensor

from imagebart.arguments import as_int
from imagebart.diffusion import geometric
from imagebart.guidance import per_scale
from imagebart.model import ImageBART
from imagebart.notation import Bool, Grid, Tokens
from imagebart.options import (
    AnnealedOptions,
    RefinedOptions,
    SamplingOptions,
    SingleOptions,
    with_options,
)
from imagebart.sampling import (
    Draft,
    Request,
    Step,
    generator_of,
    gumbel,
    span,
    step_of,
    uniform_tokens,
)

FEWEST, MOST = 2, 8
"""Passes at t = T - 1 that look around a hole of which nothing is said: as `looks` has it."""


@with_options
@torch.inference_mode()
def edit_steps(
    model: ImageBART,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    **options: Unpack[SingleOptions],
) -> Iterator[Step]:
    """p_θ^{t-1|t,m} for t = T .. 2: the chain run down once with the known tokens held.

    x_1 (1, h, w) are the image's tokens, `hole` (1, h, w) is True where they may change.

    At t = T nothing is seen but what stands before a token, so a sky would be drawn without a look
    at the land below it, and no later scale changes its mind. Where anything is known, and T > 2,
    the hole can be left as noise there, and t = T - 1, which sees all that is known, has `around`
    passes: remember, then forget to t and remember again. 0 is the paper's chain, all scales once.
    Not given, it is 0 where a prompt, a class or a map says what to draw, which is best heard from
    the beginning, and elsewhere `looks(hole)`.
    """
    around = options.pop("around", None)
    yield from MaskedProcess(model, x_1, hole, num_images, **options).down(around)


@with_options
@torch.inference_mode()
def annealed_steps(
    model: ImageBART,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    **options: Unpack[AnnealedOptions],
) -> Iterator[Step]:
    """The released procedure: at every scale, forget a little and remember again, n_t times.

        x_t ← redraw(x_{t-1}, (1 - i / n_t) · β_t),   x_{t-1} ~ p_θ^{t-1|t,m}(· | x_t),   i < n_t

    The first pass (i = 0) takes x_t as it comes; the redraws of later passes fall on known tokens
    too, which the pass puts back. `chains` is n_t: one number, or one for each t = 2 .. T; None is
    as released, see `released_chains`. Temperature and top-k hold at every scale. Arguments and
    steps are those of `edit_steps`.
    """
    chains = options.pop("chains", None)
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


@with_options
@torch.inference_mode()
def refined_steps(
    model: ImageBART,
    x_1: Grid,
    hole: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    **options: Unpack[RefinedOptions],
) -> Iterator[Step]:
    """`edit_steps`, then passes on the finest scale: forget the hole to t = 2, remember it again.

        x_2 ← q(x_2 | x_1) in the hole,   x_1 ~ p_θ^{1|2,m}(· | x_2)

    What was drawn before its surroundings were known gets to see them. Each pass has its own noise.
    An image whose tokens a pass leaves as they are has settled and rests; when all have, or after
    `passes`, it ends. The steps of the passes have t = 1.
    """
    passes, around = options.pop("passes", None), options.pop("around", None)
    passes = 8 if passes is None else as_int(passes, "passes")
    process = MaskedProcess(model, x_1, hole, num_images, **options)
    down, all_passes = model.T - 1, model.T - 1 + passes
    for step in process.down(around):
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
        model: ImageBART,
        x_1: Grid,
        hole: Bool[Tensor, "1 h w"],
        num_images: int,
        **options: Unpack[SamplingOptions],
    ):
        self.model, self.draft = model, Draft(model.diffusion)
        self.request = Request.of(model, num_images, options)
        self.x_known = repeat(x_1, "1 h w -> b (h w)", b=num_images)
        self.known = ~repeat(hole, "1 h w -> b (h w)", b=num_images).to(x_1.device)
        self.upto = int(span(self.x_known, self.known)[1].max())  # the end of the last hole

    def start(self) -> Tokens:
        """x_T: known tokens, and noise in the hole."""
        n = self.known.shape[1]
        noise = uniform_tokens(self.request.seeds, self.model.T, n, self.model.K)
        return torch.where(self.known, self.x_known, noise.to(self.x_known.device))

    def down(self, around: int | None) -> Iterator[Step]:
        """The steps of `edit_steps`."""
        x = self.start()
        yield step_of(self.model, self.model.T, x)
        for t, passes in self.course(around).items():
            for turn in range(passes):
                x = self.again(x, t, turn) if turn else self.remember(x, t, 0)
            yield step_of(self.model, t - 1, x)

    def course(self, around: int | None) -> dict[int, int]:
        """{t: passes} from t = T to 2 of `edit_steps`."""
        if around is None:
            around = looks(~self.known) if self.request.encoded.is_unconditional else 0
        T, around = self.model.T, as_int(around, "around")
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
        request, denoiser = self.request, self.model.denoisers[t]
        noise = gumbel(request.seeds, t, self.upto, denoiser.K, turn).to(x_t.device)
        how = request.filters[t], request.encoded.condition, self.known, self.x_known
        guided = request.encoded.guided(denoiser)
        return request.decode(guided, x_t, noise, *how, draft=self.draft)

    def forget(self, x: Tokens, t: int, turn: int, part: float = 1.0) -> Tokens:
        """x with every token redrawn with the chance part · β_t."""
        chance = part * float(self.model.diffusion.beta[t])
        return redraw(x, chance, self.model.K, self.request.seeds, t, turn)


PROCESSES = {"single": edit_steps, "annealed": annealed_steps, "refined": refined_steps}


def looks(hole: Bool[Tensor, "b n"]) -> int:
    """How often to look around a hole: once for each sixteenth of the picture, 2 to 8 times.

    The larger the hole, the less of what was drawn first knew of its surroundings.
    """
    return min(max(round(16 * hole.float().mean().item()), FEWEST), MOST)


def redraw(x: Tokens, chance: float, K: int, seeds: Sequence[int], t: int, turn: int) -> Tokens:
    """x with every token redrawn from all K with this chance; the noise is each image's own."""
    rows = []
    for row, seed in zip(x, seeds, strict=True):
        generator = generator_of(seed, t, turn, "redraw")
        where = torch.rand(len(row), generator=generator) < chance
        fresh = torch.randint(K, (len(row),), generator=generator)
        rows.append(torch.where(where.to(x.device), fresh.to(x.device), row))
    return torch.stack(rows)


def released_chains(model: ImageBART) -> dict[int, int]:
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
    return {t: as_int(n, "chains", 1) for t, n in zip(range(2, T + 1), lengths, strict=True)}
