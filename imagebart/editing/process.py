"""The masked process: known tokens are fixed, masked tokens are sampled.   [section 4.3, A.3]

Known tokens are those of the image, without noise, at every scale; masked tokens start as noise
and go through the chain. No model is trained for it. Three processes:

    single      every scale once; without a condition, resampling at t = T - 1 in place of t = T
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
    tempered,
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
from imagebart.streaming import fitting

LEAST_RESAMPLING, MOST_RESAMPLING = 2, 8
"""Bounds of `default_resampling`."""


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
    x_T, then x_{t-1} of every scale. ValueError for what are no tokens or no mask of the model's
    grid, and if an option is out of range.

    At t = T a token attends only to the tokens before it: a sky is sampled without the land below
    it, and finer scales change little of it. So, if any token is known and T > 2, the masked tokens
    can stay noise at t = T, and t = T - 1, which attends to all known tokens, gets
    `resampling_passes`: denoise, then repeatedly add noise to t and denoise (as in RePaint). 0 is
    the paper's chain, every scale once. The default is 0 for an image with a prompt, a class or a
    map, which t = T should be conditioned on, and `default_resampling(masked)` for one without.

    `particles` is the other way: t = T draws so many fillings of each image, of which the known
    tokens after them choose one (`particles.py`), and every finer scale runs once.
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
    passes = given.pop("passes", None)
    how = given.pop("resampling_passes", None), given.pop("particles", None)
    passes = 8 if passes is None else as_int(passes, "passes")
    process = MaskedProcess(model, x_1, masked, num_images, **given)
    scales, in_all = model.T - 1, model.T - 1 + passes
    for step in process.run(*how):
        yield replace(step, done=step.done * scales / in_all)
    x = rearrange(step.tokens, "b h w -> b (h w)")
    converged = torch.zeros(num_images, 1, dtype=torch.bool, device=x.device)
    first = process.schedule(*how)[2]  # pass indices below are taken at t = 2
    for i in range(passes):
        x_new = torch.where(converged, x, process.resample(x, 2, [n + i for n in first]))
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
        require_x_1(model, x_1)
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
        schedule = self.schedule(resampling_passes, particles)
        if particles is not None and self.sees_less_than_is_known():
            del schedule[T]
            x, effective = self.conditional_draw(x, particles)
            yield replace(step_of(self.model, T - 1, x), effective=effective)
        for t, passes in schedule.items():
            for i in range(max(passes)):
                step, pass_index = self.resample if i else self.denoise, [i] * len(passes)
                more = torch.tensor([[i < n] for n in passes], device=x.device)
                x = torch.where(more, step(x, t, pass_index), x)
            yield step_of(self.model, t - 1, x)

    def schedule(
        self, resampling_passes: int | None, particles: int | None
    ) -> dict[int, list[int]]:
        """{t: passes of each image} of `edit_steps`, from t = T to 2.

        An image's passes depend on its own condition only, whatever it is sampled beside.
        """
        T, given = self.model.T, self.request.encoded.given(len(self.known))
        if particles is not None:
            as_int(particles, "particles", 1)
            if resampling_passes:
                raise ValueError("particles needs resampling_passes=0, the scale t = T: got both")
            resampling_passes = 0
        if resampling_passes is None:
            most = default_resampling(~self.known)
            resampling = [0 if one else most for one in given]
        else:
            resampling = [as_int(resampling_passes, "resampling_passes")] * len(given)
        if T == 2 or not self.known.any():
            resampling = [0] * len(given)
        schedule = {t: [1] * len(given) for t in range(T, 1, -1)}
        if any(resampling):
            schedule[T] = [0 if n else 1 for n in resampling]
            schedule[T - 1] = [n or 1 for n in resampling]
        return schedule

    def sees_less_than_is_known(self) -> bool:
        """Whether a known token comes after a masked one, so that t = T does not attend to it."""
        return bool((self.known[0] & (~self.known[0]).cumsum(0).bool()).any())

    def conditional_draw(self, x_T: Tokens, particles: int) -> tuple[Tokens, Float[Tensor, "b"]]:
        """(x_{T-1} of one particle an image, the effective sample size): see particles.py.

        Particles are images of the batch, in as many batches as fit the memory.
        """
        T, seeds = self.model.T, self.request.seeds
        rows = [(i, j) for i in range(len(seeds)) for j in range(particles)]
        drawn, log_p = [], []
        for part in split(range(len(rows)), fitting(self.model)):
            here = [rows[k] for k in part]
            images = torch.tensor([i for i, _ in here], device=x_T.device)
            own = self.of(images, [particle_seed(seeds[i], j, T) for i, j in here])
            drawn.append(own.denoise(x_T[images], T, [0] * len(here)))
            log_p.append(own.log_probability(x_T[images], drawn[-1], T))
        weights = tempered(rearrange(torch.cat(log_p), "(b j) -> b j", j=particles))
        first = particles * torch.arange(len(seeds), device=x_T.device)
        chosen = first + choose_by_weight(weights, seeds, T)
        return torch.cat(drawn)[chosen], effective_size(weights)

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
        scale, _ = self.request.scale(self.model.denoisers[t])
        return known_log_probability(scale, x_t, x_prev, encoded.condition, self.known)

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


def default_resampling(masked: Bool[Tensor, "b n"]) -> int:
    """Resampling passes: one for each sixteenth of the image that is masked, 2 to 8.

    The larger the mask, the fewer tokens attend to known neighbours in the first pass.
    """
    passes = round(16 * masked.float().mean().item())
    return min(max(passes, LEAST_RESAMPLING), MOST_RESAMPLING)


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
