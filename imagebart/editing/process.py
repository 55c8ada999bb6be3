"""The masked process: known tokens are fixed, masked tokens are sampled.   [section 4.3, A.3]

Known tokens are those of the image, without noise, at every scale; masked tokens start as noise
and go through the chain. No model is trained for it. Three processes:

    single      every scale once; without a condition, t = T draws several particles, of which one
                is kept
    refined     single, then passes of noise and denoising at t = 2 until no token changes
    annealed    every scale several times, with less noise before each pass: the procedure of the
                released editing script
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Unpack

import torch
from einops import rearrange, repeat
from torch import Tensor

from imagebart.arguments import as_int
from imagebart.diffusion import geometric
from imagebart.distributed import split
from imagebart.editing.particles import (
    choose_by_weight,
    effective_size,
    known_log_probability,
    particle_seed,
)
from imagebart.guidance import per_scale
from imagebart.isolation import isolated
from imagebart.model import ImageBART, require_x_1
from imagebart.notation import Bool, Float, Grid, Int, Tokens
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
from imagebart.streaming import batch_that_fits

LEAST_PARTICLES, MOST_PARTICLES = 2, 8
"""Bounds of `default_particles`."""


@with_options
@isolated
def edit_steps(
    model: ImageBART,
    x_1: Grid,
    masked: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    **options: Unpack[SingleOptions],
) -> Iterator[Step]:
    """p_θ^{t-1|t,m} for t = T .. 2: the chain run once with the known tokens fixed.

    x_1 (1, h, w) are the image's tokens, `masked` (1, h, w) is True where they are sampled. Yields
    x_T, then x_{t-1} of every scale. ValueError at the first step for what are no tokens or no mask
    of the model's grid, and if an option is out of range.

    At t = T a token attends only to the tokens before it: a sky is sampled without the land below
    it, and finer scales change little of it. So t = T draws `particles`, so many fillings of each
    image, of which the known tokens after them choose one (`particles.py`), and every finer scale
    runs once. 1 is the paper's chain, every scale once. The default is 1 for an image with a
    prompt, a class or a map, by which t = T knows what to draw, and `default_particles(masked)` for
    one without.

    `resampling_passes` is the other way, if any token is known and T > 2: the masked tokens stay
    noise at t = T, and t = T - 1, which attends to all known tokens, gets so many passes: denoise,
    then repeatedly add noise to t and denoise (as in RePaint). 0 is the paper's chain as well.
    """
    given: dict[str, Any] = {**options}
    how = given.pop("resampling_passes", None), given.pop("particles", None)
    yield from MaskedProcess(model, x_1, masked, num_images, **given).run(*how)


@with_options
@isolated
def annealed_steps(
    model: ImageBART,
    x_1: Grid,
    masked: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    **options: Unpack[AnnealedOptions],
) -> Iterator[Step]:
    """The released procedure: n_t passes at every scale, each with less noise than the one before.

        x_t ← redraw(x_{t-1}, (1 - i / n_t) · β_t),   x_{t-1} ~ p_θ^{t-1|t,m}(· | x_t),   i < n_t

    The first pass (i = 0) takes x_t as it is; later passes redraw known tokens too, and restore
    them in x_{t-1}. `chains` is n_t: one number, or one for each t = 2 .. T; the default is
    `released_chains`. Temperature and top-k apply at every scale. Other arguments, steps and errors
    as in `edit_steps`.
    """
    given: dict[str, Any] = {**options}
    chains = given.pop("chains", None)
    process = MaskedProcess(model, x_1, masked, num_images, **given)
    passes = released_chains(model) if chains is None else chain_lengths(model.T, chains)
    x = process.start()
    yield step_of(model, model.T, x)
    for t in range(model.T, 1, -1):
        for i in range(passes[t]):
            pass_index = [i] * num_images
            if i:
                x = process.add_noise(x, t, pass_index, 1 - i / passes[t])
            x = process.denoise(x, t, pass_index)
        yield step_of(model, t - 1, x)


@with_options
@isolated
def refined_steps(
    model: ImageBART,
    x_1: Grid,
    masked: Bool[Tensor, "1 h w"],
    num_images: int = 1,
    **options: Unpack[RefinedOptions],
) -> Iterator[Step]:
    """`edit_steps`, then iterative refinement: add noise to t = 2 and denoise, `passes` times.

        x_2 ~ q(x_2 | x_1) at masked positions,   x_1 ~ p_θ^{1|2,m}(· | x_2)

    Each token is sampled again given all tokens of x_2 around it, with the noise of its pass. An
    image that a pass does not change has converged and stays; the process ends when all images
    have, or after `passes`. The steps of these passes have t = 1. Other arguments and errors as in
    `edit_steps`.
    """
    given: dict[str, Any] = {**options}
    names = "passes", "resampling_passes", "particles"
    passes, resampling_passes, particles = (given.pop(name, None) for name in names)
    passes = 8 if passes is None else as_int(passes, "passes")
    process = MaskedProcess(model, x_1, masked, num_images, **given)
    scales, in_all = model.T - 1, model.T - 1 + passes
    for step in process.run(resampling_passes, particles):
        yield replace(step, done=step.done * scales / in_all)
    x = rearrange(step.tokens, "b h w -> b (h w)")
    converged = torch.zeros(num_images, 1, dtype=torch.bool, device=x.device)
    first = process.schedule(resampling_passes)[2]  # pass indices below are taken at t = 2
    for i in range(passes):
        x_new = torch.where(converged, x, process.resample(x, 2, [first + i] * num_images))
        converged, x = (x_new == x).all(1, keepdim=True), x_new
        done = 1.0 if converged.all() else (scales + i + 1) / in_all
        yield replace(step_of(model, 1, x), done=done)
        if converged.all():
            return


class MaskedProcess:
    """The chain with known tokens fixed: p_θ^{t-1|t,m}, and noise.   [section 4.3, A.3]"""

    def __init__(
        self,
        model: ImageBART,
        x_1: Grid,
        masked: Bool[Tensor, "1 h w"],
        num_images: int,
        **options: Unpack[SamplingOptions],
    ):
        x_1 = require_x_1(model, x_1)
        require_masked(masked, model.grid)
        self.model, self.draft = model, Draft(model.diffusion)
        self.request = Request.of(model, num_images, options)
        self.x_known = repeat(x_1, "1 h w -> b (h w)", b=num_images)
        self.known = ~repeat(masked, "1 h w -> b (h w)", b=num_images).to(x_1.device)
        self.end = int(span(self.x_known, self.known)[1].max())  # of the masked positions

    def start(self) -> Tokens:
        """x_T (b, n): known tokens, and noise at masked positions."""
        n = self.known.shape[1]
        noise = uniform_tokens(self.request.seeds, self.model.T, n, self.model.K)
        return torch.where(self.known, self.x_known, noise.to(self.x_known.device))

    def run(self, resampling_passes: int | None, particles: int | None) -> Iterator[Step]:
        """The steps of `edit_steps`."""
        x, T = self.start(), self.model.T
        yield step_of(self.model, T, x)
        counts = self.particles(resampling_passes, particles)
        schedule = self.schedule(resampling_passes)
        if max(counts) > 1:
            del schedule[T]
            x, effective = self.conditional_draw(x, counts)
            yield replace(step_of(self.model, T - 1, x), effective=effective)
        for t, passes in schedule.items():
            for i in range(passes):
                step = self.resample if i else self.denoise
                x = step(x, t, [i] * len(x))
            yield step_of(self.model, t - 1, x)

    def particles(self, resampling_passes: int | None, particles: int | None) -> list[int]:
        """The particles of each image at t = T, by its own condition, whatever it is beside; one
        where no known token comes after a masked one."""
        if particles is not None:
            as_int(particles, "particles", 1)
            if resampling_passes:
                raise ValueError("particles needs resampling_passes=0, the scale t = T: got both")
        count = len(self.known)
        if not self.sees_less_than_is_known():
            return [1] * count
        if particles is None and resampling_passes is None:
            most = default_particles(~self.known[0])
            return [1 if one else most for one in self.request.encoded.given(count)]
        return [particles or 1] * count

    def schedule(self, resampling_passes: int | None) -> dict[int, int]:
        """{t: passes} of `edit_steps`, from t = T to 2."""
        passes = as_int(resampling_passes or 0, "resampling_passes")
        T, schedule = self.model.T, dict.fromkeys(range(self.model.T, 1, -1), 1)
        if passes and T > 2 and self.known.any():
            schedule |= {T: 0, T - 1: passes}
        return schedule

    def sees_less_than_is_known(self) -> bool:
        """Whether a known token comes after a masked one, so that t = T does not attend to it."""
        return bool((self.known[0] & (~self.known[0]).cumsum(0).bool()).any())

    def conditional_draw(
        self, x_T: Tokens, counts: Sequence[int]
    ) -> tuple[Tokens, Float[Tensor, "b"]]:
        """(x_{T-1} of one of each image's particles, the effective sample size): see particles.py.

        Particles are images of the batch, in as many batches as fit the memory.
        """
        T, seeds = self.model.T, self.request.seeds
        rows = [(i, j) for i, count in enumerate(counts) for j in range(count)]
        drawn, log_p = [], []
        for part in split(range(len(rows)), batch_that_fits(self.model)):
            here = [rows[k] for k in part]
            images = torch.tensor([i for i, _ in here], device=x_T.device)
            own = self.of(images, [particle_seed(seeds[i], j, T) for i, j in here])
            drawn.append(own.denoise(x_T[images], T, [0] * len(here)))
            log_p.append(own.log_probability(x_T[images], drawn[-1], T))
        weights = [one[None].softmax(1) for one in torch.cat(log_p).split([*counts])]
        each = zip(torch.cat(drawn).split([*counts]), weights, seeds, strict=True)
        chosen = [one[choose_by_weight(weight, [seed], T)] for one, weight, seed in each]
        return torch.cat(chosen), torch.cat([effective_size(weight) for weight in weights])

    def of(self, images: Int[Tensor, " r"], seeds: list[int]) -> "MaskedProcess":
        """The process of these of its images, each with another seed."""
        own = copy(self)
        own.draft = Draft(self.model.diffusion)
        own.request = replace(self.request, seeds=seeds, encoded=self.request.encoded.of(images))
        own.x_known, own.known = self.x_known[images], self.known[images]
        return own

    def log_probability(self, x_t: Tokens, x_prev: Tokens, t: int) -> Float[Tensor, "b"]:
        """Of the known tokens of x_{t-1} after the first masked one."""
        encoded = self.request.encoded
        scale, choose = self.request.scale(self.model.denoisers[t])
        how = encoded.condition, self.known, choose.temperature
        return known_log_probability(scale, x_t, x_prev, *how)

    def resample(self, x: Tokens, t: int, pass_index: Sequence[int]) -> Tokens:
        """x_{t-1} with its masked tokens noised to t and denoised."""
        x_t = torch.where(self.known, self.x_known, self.add_noise(x, t, pass_index))
        return self.denoise(x_t, t, pass_index)

    def denoise(self, x_t: Tokens, t: int, pass_index: Sequence[int]) -> Tokens:
        """x_{t-1} ~ p_θ^{t-1|t,m}(· | x_t), with the Gumbel noise of each image's pass."""
        request, denoiser = self.request, self.model.denoisers[t]
        each = zip(request.seeds, pass_index, strict=True)
        noise = torch.cat([gumbel([seed], t, self.end, denoiser.K, i) for seed, i in each])
        scale, choose = request.scale(denoiser)
        how = choose, request.encoded.condition, self.known, self.x_known
        return request.decode(scale, x_t, noise.to(x_t.device), *how, draft=self.draft)

    def add_noise(self, x: Tokens, t: int, pass_index: Sequence[int], part: float = 1.0) -> Tokens:
        """x with every token redrawn with probability part · β_t."""
        probability = part * float(self.model.diffusion.beta[t])
        return redraw(x, probability, self.model.K, self.request.seeds, t, pass_index)


def require_masked(masked: Tensor, grid: tuple[int, int]) -> None:
    """ValueError unless this is a mask (1, h, w) of tokens."""
    if tuple(masked.shape) != (1, *grid) or masked.dtype != torch.bool:
        (h, w), got = grid, f"{masked.dtype} of shape {tuple(masked.shape)}"
        raise ValueError(f"masked must be (1, {h}, {w}) truth values, got {got}")


PROCESSES: dict[str, Callable[..., Iterator[Step]]] = {
    "single": edit_steps,
    "annealed": annealed_steps,
    "refined": refined_steps,
}


def default_particles(masked: Bool[Tensor, " n"]) -> int:
    """Particles: one for each sixteenth of the image that is masked, 2 to 8.

    The smaller the mask, the less is left open by what stands before it.
    """
    particles = round(16 * masked.float().mean().item())
    return min(max(particles, LEAST_PARTICLES), MOST_PARTICLES)


def redraw(
    x: Tokens,
    probability: float,
    K: int,
    seeds: Sequence[int],
    t: int,
    pass_index: Sequence[int],
) -> Tokens:
    """x (b, n) with every token redrawn from all K with this probability, by its image's seed and
    pass."""
    rows = []
    for row, seed, i in zip(x, seeds, pass_index, strict=True):
        generator = generator_of(seed, t, i, "redraw")
        where = torch.rand(len(row), generator=generator) < probability
        fresh = torch.randint(K, (len(row),), generator=generator)
        rows.append(torch.where(where.to(x.device), fresh.to(x.device), row))
    return torch.stack(rows)


def released_chains(model: ImageBART) -> dict[int, int]:
    """{t: passes} as released: 3 on a geometric schedule, 5 on others, and one at t = T.

    The released script repeats t = T too on a geometric schedule, where x_T is not read: each
    pass is an independent sample, and only the last is kept.
    """
    exact = torch.tensor(geometric(model.T), dtype=torch.float64)
    several = 3 if torch.allclose(model.diffusion.alpha_bar[1:], exact, atol=1e-6) else 5
    return {t: several if t < model.T else 1 for t in range(2, model.T + 1)}


def chain_lengths(T: int, chains: int | Sequence[int]) -> dict[int, int]:
    """{t: passes} from one number, or one for each t = 2 .. T; ValueError unless at least 1."""
    lengths = per_scale(chains, T, "chains")
    return {t: as_int(n, "chains", 1) for t, n in zip(range(2, T + 1), lengths, strict=True)}
